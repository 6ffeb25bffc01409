package spec

import "strings"

// NumberForm says what is wrong with the numbers in the value of a unified limit, "" for nothing: they have no plus, and are neither octal
// nor hexadecimal. The kernel reads 0100 as 64, systemd as 100, and shows neither, so that nobody could tell later whether the limit
// holds. It is the rule for requests, for which package server asks here, and for plugins.
//
// A number is a word of its own or behind a key (hca_handle=2), may be negative, and may be one of a list (0-3,7). Other words, as the names
// of devices, are not looked at.
func NumberForm(v string) string {
	for word := range strings.FieldsSeq(v) {
		for part := range strings.SplitSeq(word, "=") {
			if !plainNumber(part) {
				return "must have numbers without a plus, not in octal or hexadecimal form"
			}
		}
	}
	return ""
}

// plainNumber says whether a word is a number, or a list of some, in the one form that all read alike; or none.
func plainNumber(word string) bool {
	if strings.Trim(word, "0123456789,-") == "" {
		for n := range strings.FieldsFuncSeq(word, func(r rune) bool { return r == ',' || r == '-' }) {
			if len(n) > 1 && n[0] == '0' {
				return false
			}
		}
		return true
	}
	n := strings.TrimPrefix(word, "-")
	if strings.HasPrefix(n, "+") {
		return false
	}
	return len(n) < 2 || n[0] != '0' || (n[1] < '0' || n[1] > '9') && n[1] != 'x' && n[1] != 'X'
}
