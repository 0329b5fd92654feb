package resolve

import "math/bits"

// A set has values of one extension: 0 is that it is not there, i+1 that its
// candidate i is. Sets of one extension have the same length, and do not change
// once they are in a term.
type set []uint64

func newSet(values int) set { return make(set, (values+63)/64) }

func fullSet(values int) set {
	s := newSet(values)
	for v := range values {
		s.add(v)
	}
	return s
}

func oneOf(values int, members ...int) set {
	s := newSet(values)
	for _, v := range members {
		s.add(v)
	}
	return s
}

func (s set) add(v int)      { s[v/64] |= 1 << (v % 64) }
func (s set) has(v int) bool { return s[v/64]&(1<<(v%64)) != 0 }

func (s set) within(t set) bool {
	for i := range s {
		if s[i]&^t[i] != 0 {
			return false
		}
	}
	return true
}

func (s set) meets(t set) bool {
	for i := range s {
		if s[i]&t[i] != 0 {
			return true
		}
	}
	return false
}

func (s set) and(t set) set {
	r := make(set, len(s))
	for i := range s {
		r[i] = s[i] & t[i]
	}
	return r
}

func (s set) or(t set) set {
	r := make(set, len(s))
	for i := range s {
		r[i] = s[i] | t[i]
	}
	return r
}

func (s set) minus(t set) set {
	r := make(set, len(s))
	for i := range s {
		r[i] = s[i] &^ t[i]
	}
	return r
}

func (s set) empty() bool {
	for _, w := range s {
		if w != 0 {
			return false
		}
	}
	return true
}

func (s set) size() int {
	n := 0
	for _, w := range s {
		n += bits.OnesCount64(w)
	}
	return n
}

// highest returns the highest value, or -1.
func (s set) highest() int {
	for i := len(s) - 1; i >= 0; i-- {
		if s[i] != 0 {
			return i*64 + bits.Len64(s[i]) - 1
		}
	}
	return -1
}
