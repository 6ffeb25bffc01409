package server

import "testing"

// BenchmarkCheckCreateContainer is what the checks add to the largest request.
func BenchmarkCheckCreateContainer(b *testing.B) {
	s := &Server{cfg: Config{CgroupDriver: 1, Features: Features{RecursiveReadOnly: true, SupplementalGroupsPolicy: true}}}
	r := validCreate()
	b.ReportAllocs()
	for b.Loop() {
		if err := s.checkCreateContainer(r); err != nil {
			b.Fatal(err)
		}
	}
}
