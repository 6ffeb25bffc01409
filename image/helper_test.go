package image

func runHelper(string) int { return 1 }
