package main

import (
	"fmt"
	"io"
	"log/slog"
	"strings"
)

// newLog returns a log to w in the given format ("text", "json") that drops
// what is below level ("debug", "info", "warn", "error"). Passwords in it are
// masked, whoever wrote them.
func newLog(w io.Writer, format, level string) (*slog.Logger, error) {
	var threshold slog.Level
	switch level {
	case "debug":
		threshold = slog.LevelDebug
	case "", "info":
		threshold = slog.LevelInfo
	case "warn":
		threshold = slog.LevelWarn
	case "error":
		threshold = slog.LevelError
	default:
		return nil, fmt.Errorf("unknown log level %q", level)
	}
	options := &slog.HandlerOptions{Level: threshold, ReplaceAttr: maskAttr}
	switch format {
	case "", "text":
		return slog.New(slog.NewTextHandler(w, options)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, options)), nil
	}
	return nil, fmt.Errorf("unknown log format %q", format)
}

func maskAttr(_ []string, attr slog.Attr) slog.Attr {
	switch value := attr.Value.Any().(type) {
	case string:
		if strings.ContainsAny(value, "=@") {
			attr.Value = slog.StringValue(maskPasswords(value))
		}
	case error:
		attr.Value = slog.StringValue(maskPasswords(value.Error()))
	}
	return attr
}
