package s3sdk

import (
	"fmt"
	"io"
	"log/slog"
)

// Secret is a string that prints as *** in every format, log and encoding. Convert it with string(s) to use it. One
// thing is beyond it: fmt shows an unexported field of a struct that it prints whole, without asking the field's type.
type Secret string

const redacted = "***"

// String returns ***.
func (Secret) String() string { return redacted }

// GoString returns ***.
func (Secret) GoString() string { return redacted }

// Format prints *** for every verb: fmt shows the string itself for a verb that does not fit it.
func (Secret) Format(f fmt.State, _ rune) {
	_, _ = io.WriteString(f, redacted) // fmt.State keeps the error of its writer
}

// LogValue returns ***.
func (Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText returns ***.
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// MarshalJSON returns "***".
func (Secret) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }
