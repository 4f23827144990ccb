package namespace

type tree struct{}
type taskState struct{}
