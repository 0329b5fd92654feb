-- Renamed and not dropped: views that use it go on using it.
ALTER FUNCTION @extschema@.foo_total(integer[]) RENAME TO bla_count;
