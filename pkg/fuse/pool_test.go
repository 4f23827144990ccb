package fuse

import "testing"

// Slots come whole again, and scarcity is told in time.
func TestPool(t *testing.T) {
	p, err := sharedPool() // another one would be memory for the rest of the tests
	if err != nil {
		t.Fatal(err)
	}
	var taken [][]byte
	for i := range slots {
		s := p.get()
		s[0], s[slotSize-1] = byte(i), byte(i)
		taken = append(taken, s[:10])
		if want := slots-i-1 < scarce; p.scarce() != want {
			t.Errorf("%d slots are free: scarce %v", slots-i-1, p.scarce())
		}
	}
	got := make(chan []byte)
	go func() { got <- p.get() }()
	select {
	case <-got:
		t.Fatal("a slot that nobody gave back")
	default:
	}
	p.put(taken[5])
	for i, s := range taken {
		if i != 5 {
			defer p.put(s)
		}
	}
	if s := <-got; len(s) != slotSize || cap(s) != slotSize || s[0] != 5 || s[slotSize-1] != 5 {
		t.Errorf("slot of %d bytes", len(s))
	} else {
		p.put(s)
	}
}

// Buffers have the length that was asked for, and those of odd sizes are not kept.
func TestBuffers(t *testing.T) {
	var b buffers
	for _, n := range []int{0, 1, smallBuffer, smallBuffer + 1, maxIO, largeBuffer, largeBuffer + 1} {
		for range 3 {
			p := b.get(n)
			if len(p) != n || cap(p) < n {
				t.Fatalf("%d bytes of %d, want %d", len(p), cap(p), n)
			}
			b.put(p)
		}
	}
	b.put(nil)
}
