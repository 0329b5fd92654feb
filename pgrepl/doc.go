// Package pgrepl speaks PostgreSQL's streaming replication protocol, both ends.
package pgrepl
