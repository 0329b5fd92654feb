package main

import (
	"strings"
	"testing"
)

func TestMaskPasswords(t *testing.T) {
	const secret = "s3cret"
	tests := []struct{ name, text, want string }{
		{"no password, nothing to do", "host=db1 user=replicator", "host=db1 user=replicator"},
		{"keyword and value", "host=db1 password=s3cret user=u", "host=db1 password=******** user=u"},
		{"spaces around the sign", "password = s3cret", "password = ********"},
		{"quoted, with a space and an escaped quote", `password='a s3cret\' s3cret' user=u`, "password=******** user=u"},
		{"quote never closed", `password='a s3cret`, "password=********"},
		{"escaped space", `password=a\ s3cret user=u`, "password=******** user=u"},
		{"in the text of an error", "cannot parse `host=db1 password=s3cret`: failed", "cannot parse `host=db1 password=******** failed"},
		{"key passphrase", "sslpassword=s3cret", "sslpassword=********"},
		{"URI", "postgresql://u:s3cret@db1:5432/postgres", "postgresql://u:********@db1:5432/postgres"},
		{"URI, short scheme, several hosts", "postgres://u:s3cret@db1,db2/", "postgres://u:********@db1,db2/"},
		{"URI, user without password", "postgres://u@db1", "postgres://u@db1"},
		{"URI, as a parameter", "postgres://db1?user=u&password=s3cret&sslmode=require", "postgres://db1?user=u&password=********&sslmode=require"},
		{"URI, an unescaped slash or at sign in it", "postgres://u:s3cret/s3@cret@db1/", "postgres://u:********@db1/"},
		{"URI, a colon but no password: better one too many", "postgres://db1:5432/?user=a@b", "postgres://db1:********@b"},
		{"masked before", "password=********\" is wrong", "password=********\" is wrong"},
		{"passfile is no secret", "passfile=/home/u/.pgpass", "passfile=/home/u/.pgpass"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := maskPasswords(tt.text)
			if got != tt.want {
				t.Errorf("maskPasswords(%q)\n got %q\nwant %q", tt.text, got, tt.want)
			}
			if strings.Contains(got, secret) {
				t.Errorf("%q is still there", secret)
			}
		})
	}
}

func TestNearest(t *testing.T) {
	names := []string{"listen", "slot", "name", "keep", "users"}
	tests := []struct{ name, word, want string }{
		{"two letters swapped", "solt", "slot"},
		{"a letter missing", "listn", "listen"},
		{"a beginning", "li", "listen"},
		{"more than there is to it", "listen_addresses", "listen"},
		{"another word", "checkpoint", ""},
		{"nothing", "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := nearest(tt.word, names); got != tt.want {
				t.Errorf("nearest(%q) = %q, want %q", tt.word, got, tt.want)
			}
		})
	}
}
