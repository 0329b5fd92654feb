package main

import (
	"context"
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
		return slog.New(explaining{slog.NewTextHandler(w, options)}), nil
	case "json":
		return slog.New(explaining{slog.NewJSONHandler(w, options)}), nil
	}
	return nil, fmt.Errorf("unknown log format %q", format)
}

// explaining is a handler that says of an error what report would: a daemon that
// goes on trying has nobody to report to but its log.
type explaining struct{ slog.Handler }

func (h explaining) Handle(ctx context.Context, r slog.Record) error {
	var words explanation
	out := slog.NewRecord(r.Time, r.Level, r.Message, r.PC)
	r.Attrs(func(a slog.Attr) bool {
		if err, ok := a.Value.Any().(error); ok && err != nil {
			words = explain(err)
			a.Value = slog.StringValue(words.message)
		}
		out.AddAttrs(a)
		return true
	})
	if words.detail != "" {
		out.AddAttrs(slog.String("detail", words.detail))
	}
	if words.hint != "" && r.Level >= slog.LevelWarn {
		out.AddAttrs(slog.String("hint", words.hint))
	}
	return h.Handler.Handle(ctx, out)
}

func (h explaining) WithAttrs(attrs []slog.Attr) slog.Handler {
	return explaining{h.Handler.WithAttrs(attrs)}
}

func (h explaining) WithGroup(name string) slog.Handler {
	return explaining{h.Handler.WithGroup(name)}
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
