// Package wal names, orders and reads PostgreSQL write-ahead log.
package wal
