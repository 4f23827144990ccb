package s3sdk

// Stats counts since the first client of an endpoint was made, for all clients that share its connections.
type Stats struct {
	Corrupt  int64 // bodies received whose checksum was wrong, or of which two copies differed
	Compared int64 // bodies asked for twice, since nothing else told whether they are right
}

// Stats is O(1).
func (c *Client) Stats() Stats {
	return Stats{Corrupt: c.pool.corrupt.Load(), Compared: c.pool.compared.Load()}
}
