package pgrepl

import (
	"math"
	"strconv"
	"strings"

	"rideau/wal"
)

// A Command is one command of the replication grammar, as a client of a
// walsender sends it in a simple query. The concrete types are
// [IdentifySystem], [Show], [TimelineHistory], [CreateSlot], [DropSlot],
// [ReadSlot], [AlterSlot], [StartReplication], [BaseBackup] and
// [UploadManifest].
type Command interface {
	// Text is the command as the client wrote it, for passing it on.
	Text() string
}

type commandText string

func (t commandText) Text() string { return string(t) }

// IdentifySystem asks for the system identifier, timeline and flushed position.
type IdentifySystem struct{ commandText }

// Show asks for one setting. Name is as the client wrote it, which is also the
// name of the column it wants back.
type Show struct {
	commandText
	Name string
}

// TimelineHistory asks for the history file of TLI.
type TimelineHistory struct {
	commandText
	TLI wal.TLI
}

// CreateSlot asks for a new slot. Plugin is empty for a physical one. Name is
// not yet checked, see [CheckSlotName].
type CreateSlot struct {
	commandText
	Name       string
	Temporary  bool
	ReserveWAL bool
	Plugin     string
}

// DropSlot asks to remove a slot; with Wait, once nobody uses it.
type DropSlot struct {
	commandText
	Name string
	Wait bool
}

// ReadSlot asks for the position of a slot (15 and later).
type ReadSlot struct {
	commandText
	Name string
}

// AlterSlot asks to change a logical slot (17 and later).
type AlterSlot struct {
	commandText
	Name string
}

// StartReplication asks for a stream of WAL from LSN on. TLI zero is the
// server's current timeline; Slot may be empty for a physical stream.
type StartReplication struct {
	commandText
	Slot    string
	Logical bool
	LSN     wal.LSN
	TLI     wal.TLI
}

// BaseBackup asks for a base backup. Its options belong to the server that
// takes it; only their form has been checked.
type BaseBackup struct{ commandText }

// UploadManifest offers the manifest of an earlier backup, for the incremental
// one that the next BASE_BACKUP takes (17 and later).
type UploadManifest struct{ commandText }

// nameLen is NAMEDATALEN - 1 of pg_config_manual.h: identifiers are cut there.
const nameLen = 63

// CheckSlotName refuses what ReplicationSlotValidateName refuses, with its
// words. It returns nil or an *Error.
func CheckSlotName(name string) error {
	switch {
	case name == "":
		return &Error{Code: "42602", Message: `replication slot name "" is too short`}
	case len(name) > nameLen:
		return &Error{Code: "42622", Message: `replication slot name "` + name + `" is too long`}
	}
	for i := range len(name) {
		c := name[i]
		if 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '_' {
			continue
		}
		return &Error{Code: "42602", Message: `replication slot name "` + name + `" contains invalid character`,
			Hint: "Replication slot names may only contain lower case letters, numbers, and the underscore character."}
	}
	return nil
}

// Errors of the parser, in the server's words.
var (
	errSyntax     = &Error{Code: "42601", Message: "syntax error"}
	errNotCommand = &Error{Code: "0A000", Message: "cannot execute SQL commands in WAL sender for physical replication"}
)

// parseCommand reads text by the grammar of repl_gram.y and repl_scanner.l: of
// the newest server, and the forms that 13 and 14 had for BASE_BACKUP. As
// there, keywords are upper case only, and anything that does not begin with a
// command's name (an empty query, a comment) is taken for SQL, which a
// physical connection refuses. The error is an *Error.
func parseCommand(text string) (Command, error) {
	p := parser{rest: text}
	raw := commandText(text)
	p.next()
	var cmd Command
	switch first := p.tok; {
	case first.kind != tokKeyword:
		if p.err != nil {
			return nil, p.err
		}
		return nil, errNotCommand
	default:
		p.next()
		switch first.text {
		case "IDENTIFY_SYSTEM":
			cmd = IdentifySystem{raw}
		case "SHOW":
			cmd = Show{raw, p.varName()}
		case "TIMELINE_HISTORY":
			cmd = TimelineHistory{raw, p.timeline()}
		case "CREATE_REPLICATION_SLOT":
			cmd = p.createSlot(raw)
		case "DROP_REPLICATION_SLOT":
			cmd = DropSlot{raw, p.ident(), p.acceptKeyword("WAIT")}
		case "READ_REPLICATION_SLOT":
			cmd = ReadSlot{raw, p.varName()}
		case "ALTER_REPLICATION_SLOT":
			name := p.ident()
			p.options()
			cmd = AlterSlot{raw, name}
		case "START_REPLICATION":
			cmd = p.startReplication(raw)
		case "BASE_BACKUP":
			p.baseBackup()
			cmd = BaseBackup{raw}
		case "UPLOAD_MANIFEST":
			cmd = UploadManifest{raw}
		default:
			// SLOT, WAIT and the rest are keywords but begin nothing.
			return nil, errNotCommand
		}
	}
	p.accept(';')
	if p.tok.kind != tokEnd {
		p.fail(errSyntax)
	}
	if p.err != nil {
		return nil, p.err
	}
	return cmd, nil
}

type tokenKind byte

const (
	tokEnd tokenKind = iota
	tokKeyword
	tokIdent
	tokString
	tokNumber
	tokLSN
	tokChar // text is the one character
)

type token struct {
	kind tokenKind
	text string // a keyword's name, an identifier in its final case, a string without quotes
	raw  string // of a bare identifier: as it was written
	num  uint64 // of tokNumber and tokLSN
}

// keywords are those of repl_scanner.l.
var keywords = map[string]bool{
	"ALTER_REPLICATION_SLOT": true, "BASE_BACKUP": true, "CREATE_REPLICATION_SLOT": true,
	"DROP_REPLICATION_SLOT": true, "EXPORT_SNAPSHOT": true, "IDENTIFY_SYSTEM": true,
	"LOGICAL": true, "NOEXPORT_SNAPSHOT": true, "PHYSICAL": true, "READ_REPLICATION_SLOT": true,
	"RESERVE_WAL": true, "SHOW": true, "SLOT": true, "START_REPLICATION": true, "TEMPORARY": true,
	"TIMELINE": true, "TIMELINE_HISTORY": true, "TWO_PHASE": true, "UPLOAD_MANIFEST": true,
	"USE_SNAPSHOT": true, "WAIT": true,
}

// A parser holds one token; the first error stays and ends the text.
type parser struct {
	rest string
	tok  token
	err  *Error
}

func (p *parser) fail(err *Error) {
	if p.err == nil {
		p.err = err
	}
	p.tok, p.rest = token{}, ""
}

// next moves to the next token: the longest match, as in flex.
func (p *parser) next() {
	p.rest = strings.TrimLeft(p.rest, " \t\n\r\f\v")
	if p.rest == "" || p.err != nil {
		p.tok = token{}
		return
	}
	s := p.rest
	digits := span(s, isDigit)
	hex := span(s, isHex)
	word := 0
	if isIdentStart(s[0]) {
		word = span(s, isIdent)
	}
	switch {
	case hex > 0 && hex < len(s) && s[hex] == '/' && span(s[hex+1:], isHex) > 0:
		end := hex + 1 + span(s[hex+1:], isHex)
		lsn, err := wal.ParseLSN(trimZeros(s[:hex]) + "/" + trimZeros(s[hex+1:end]))
		if err != nil {
			p.fail(&Error{Code: "42601", Message: "invalid streaming start location"})
			return
		}
		p.take(end, token{kind: tokLSN, num: uint64(lsn)})
	case digits > 0:
		n, _ := strconv.ParseUint(s[:digits], 10, 64) // the largest if out of range
		p.take(digits, token{kind: tokNumber, num: n})
	case word > 0:
		if keywords[s[:word]] {
			p.take(word, token{kind: tokKeyword, text: s[:word]})
			return
		}
		p.take(word, token{kind: tokIdent, text: cutName(asciiLower(s[:word])), raw: s[:word]})
	case s[0] == '"' || s[0] == '\'':
		value, end := unquote(s)
		if end < 0 {
			p.fail(&Error{Code: "42601", Message: "unterminated quoted string"})
			return
		}
		if s[0] == '"' {
			p.take(end, token{kind: tokIdent, text: cutName(value)})
		} else {
			p.take(end, token{kind: tokString, text: value})
		}
	default:
		p.take(1, token{kind: tokChar, text: s[:1]})
	}
}

func (p *parser) take(n int, t token) {
	p.rest, p.tok = p.rest[n:], t
}

func (p *parser) accept(char byte) bool {
	if p.tok.kind == tokChar && p.tok.text[0] == char {
		p.next()
		return true
	}
	return false
}

func (p *parser) acceptKeyword(name string) bool {
	if p.tok.kind == tokKeyword && p.tok.text == name {
		p.next()
		return true
	}
	return false
}

// want takes a token of kind, or fails.
func (p *parser) want(kind tokenKind) token {
	t := p.tok
	if t.kind != kind {
		p.fail(errSyntax)
		return token{}
	}
	p.next()
	return t
}

func (p *parser) ident() string { return p.want(tokIdent).text }

func (p *parser) varName() string {
	name := p.ident()
	for p.accept('.') {
		name += "." + p.ident()
	}
	return name
}

func (p *parser) timeline() wal.TLI {
	t := p.want(tokNumber)
	switch {
	case p.err != nil:
	case t.num == 0:
		p.fail(&Error{Code: "42601", Message: "invalid timeline 0"})
	case t.num > math.MaxUint32:
		// The server keeps the low 32 bits of it. We would rather say so.
		p.fail(errSyntax)
	}
	return wal.TLI(t.num)
}

func (p *parser) startReplication(raw commandText) Command {
	cmd := StartReplication{commandText: raw}
	if p.acceptKeyword("SLOT") {
		cmd.Slot = p.ident()
		cmd.Logical = p.acceptKeyword("LOGICAL")
	}
	if !cmd.Logical {
		p.acceptKeyword("PHYSICAL")
	}
	cmd.LSN = wal.LSN(p.want(tokLSN).num)
	switch {
	case cmd.Logical && p.accept('('):
		for {
			p.ident()
			if p.tok.kind == tokString {
				p.next()
			}
			if !p.accept(',') {
				break
			}
		}
		p.close()
	case !cmd.Logical && p.acceptKeyword("TIMELINE"):
		cmd.TLI = p.timeline()
	}
	return cmd
}

func (p *parser) createSlot(raw commandText) Command {
	cmd := CreateSlot{commandText: raw, Name: p.ident()}
	cmd.Temporary = p.acceptKeyword("TEMPORARY")
	logical := p.acceptKeyword("LOGICAL")
	if logical {
		cmd.Plugin = p.ident()
	} else if !p.acceptKeyword("PHYSICAL") {
		p.fail(errSyntax)
	}
	var opts []option
	if p.tok.kind == tokChar && p.tok.text == "(" {
		opts = p.options()
	} else {
		// The form before 15, which later servers take as well.
		for p.tok.kind == tokKeyword {
			switch word := p.tok.text; word {
			case "RESERVE_WAL", "TWO_PHASE":
				opts = append(opts, option{name: strings.ToLower(word)})
			case "EXPORT_SNAPSHOT", "NOEXPORT_SNAPSHOT", "USE_SNAPSHOT":
				opts = append(opts, option{name: "snapshot"})
			default:
				p.fail(errSyntax)
			}
			p.next()
		}
	}
	if p.tok.kind != tokEnd && !(p.tok.kind == tokChar && p.tok.text == ";") {
		p.fail(errSyntax)
	}
	if p.err != nil || logical {
		return cmd
	}
	// parseCreateReplSlotOptions of walsender.c.
	seen := false
	for _, o := range opts {
		switch o.name {
		case "reserve_wal":
			if seen {
				p.fail(&Error{Code: "42601", Message: "conflicting or redundant options"})
				return cmd
			}
			seen = true
			on, ok := o.bool()
			if !ok {
				p.fail(&Error{Code: "42601", Message: "reserve_wal requires a Boolean value"})
				return cmd
			}
			cmd.ReserveWAL = on
		case "snapshot", "two_phase", "failover":
			p.fail(&Error{Code: "42601", Message: "conflicting or redundant options"})
			return cmd
		default:
			p.fail(&Error{Code: "XX000", Message: "unrecognized option: " + o.name})
			return cmd
		}
	}
	return cmd
}

// An option is one of a generic option list: a name, and maybe a value.
type option struct {
	name  string
	value token // tokEnd: none
}

// bool is defGetBoolean of define.c.
func (o option) bool() (value, ok bool) {
	switch o.value.kind {
	case tokEnd:
		return true, true
	case tokNumber:
		return o.value.num == 1, o.value.num <= 1
	}
	switch strings.ToLower(o.value.text) {
	case "true", "on":
		return true, true
	case "false", "off":
		return false, true
	}
	return false, false
}

// options reads '(' option [value] [, ...] ')'.
func (p *parser) options() []option {
	if !p.accept('(') {
		p.fail(errSyntax)
		return nil
	}
	var opts []option
	for {
		var o option
		switch p.tok.kind {
		case tokKeyword, tokIdent:
			o.name = asciiLower(p.tok.text)
			if p.tok.kind == tokIdent {
				o.name = p.tok.text
			}
			p.next()
		default:
			p.fail(errSyntax)
			return nil
		}
		switch p.tok.kind {
		case tokIdent, tokString, tokNumber:
			o.value = p.tok
			p.next()
		}
		opts = append(opts, o)
		if !p.accept(',') {
			break
		}
	}
	p.close()
	return opts
}

func (p *parser) close() {
	if !p.accept(')') {
		p.fail(errSyntax)
	}
}

// baseBackup reads the options of BASE_BACKUP: a list in parentheses since 15,
// bare words up to 16. The words are keywords in those servers but not in
// today's, so they arrive here as identifiers.
func (p *parser) baseBackup() {
	if p.tok.kind == tokChar && p.tok.text == "(" {
		p.options()
		return
	}
	for p.tok.kind == tokIdent {
		word := p.tok.raw
		p.next()
		switch word {
		case "LABEL", "MANIFEST", "MANIFEST_CHECKSUMS":
			p.want(tokString)
		case "MAX_RATE":
			p.want(tokNumber)
		case "PROGRESS", "FAST", "WAL", "NOWAIT", "TABLESPACE_MAP", "NOVERIFY_CHECKSUMS":
		default:
			p.fail(errSyntax)
		}
	}
}

// unquote reads a quoted text, in which the quote itself is doubled. end is -1
// if it has no end.
func unquote(s string) (value string, end int) {
	quote := s[0]
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		if s[i] != quote {
			b.WriteByte(s[i])
			continue
		}
		if i+1 < len(s) && s[i+1] == quote {
			b.WriteByte(quote)
			i++
			continue
		}
		return b.String(), i + 1
	}
	return "", -1
}

func span(s string, in func(byte) bool) int {
	n := 0
	for n < len(s) && in(s[n]) {
		n++
	}
	return n
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

func isHex(c byte) bool { return isDigit(c) || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F' }

func isIdentStart(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || c == '_' || c >= 0x80
}

func isIdent(c byte) bool { return isIdentStart(c) || isDigit(c) || c == '$' }

// trimZeros drops leading zeros, of which the scanner allows any number.
func trimZeros(hex string) string {
	if t := strings.TrimLeft(hex, "0"); t != "" {
		return t
	}
	return "0"
}

func asciiLower(s string) string {
	b := []byte(s)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}

// cutName cuts an identifier to NAMEDATALEN - 1 bytes, and not inside a UTF-8
// character.
func cutName(s string) string {
	if len(s) <= nameLen {
		return s
	}
	n := nameLen
	for n > 0 && s[n]&0xC0 == 0x80 {
		n--
	}
	return s[:n]
}
