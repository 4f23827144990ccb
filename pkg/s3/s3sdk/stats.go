package s3sdk

// Stats counts since the first client of an endpoint was made, for all clients that share its connections.
type Stats struct {
	Corrupt int64 // bodies received whose checksum was wrong
}

// Stats is O(1).
func (c *Client) Stats() Stats {
	return Stats{Corrupt: c.pool.corrupt.Load()}
}
