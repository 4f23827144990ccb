package fuse

func serveChildren() map[string]func(*actor)   { return nil }
func mountChildren() map[string]func(*actor)   { return nil }
func controlChildren() map[string]func(*actor) { return nil }
