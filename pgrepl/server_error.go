package pgrepl

import (
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// An Error is what a server tells its client: an SQLSTATE and words that
// operators and tools look for. Detail and Hint are whole sentences, and may
// be empty.
type Error struct {
	Severity string // ERROR if empty; FATAL ends the session
	Code     string // SQLSTATE; XX000, internal error, if empty
	Message  string
	Detail   string
	Hint     string
}

// Errorf is an Error of severity ERROR with a formatted message.
func Errorf(code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

func (e *Error) Error() string {
	return fmt.Sprintf("%s (SQLSTATE %s)", e.Message, e.code())
}

func (e *Error) severity() string {
	if e.Severity == "" {
		return "ERROR"
	}
	return e.Severity
}

func (e *Error) code() string {
	if e.Code == "" {
		return "XX000"
	}
	return e.Code
}

func (e *Error) appendTo(b []byte, severity string) []byte {
	return encode(b, &pgproto3.ErrorResponse{
		Severity: severity, SeverityUnlocalized: severity,
		Code: e.code(), Message: e.Message, Detail: e.Detail, Hint: e.Hint,
	})
}

// AsError makes an *Error of any error: itself if it is one, the fields of
// what an upstream server said (a pgconn.PgError), and otherwise an internal
// error with err's text.
func AsError(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return &Error{Code: pg.Code, Message: pg.Message, Detail: pg.Detail, Hint: pg.Hint}
	}
	return &Error{Message: err.Error()}
}
