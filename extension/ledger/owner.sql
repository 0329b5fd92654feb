-- What another role than the schema's owner, a superuser, has made here belongs to
-- the owner, as if the owner had made it.
DO $do$
DECLARE
	o record;
	owner name := (SELECT pg_get_userbyid(n.nspowner) FROM pg_namespace n WHERE n.nspname = 'extension');
BEGIN
	FOR o IN SELECT format('TABLE %s', c.oid::regclass) AS what FROM pg_class c
			WHERE c.relnamespace = 'extension'::regnamespace AND c.relkind = 'r' AND pg_get_userbyid(c.relowner) <> owner
		UNION ALL SELECT format('FUNCTION %s', p.oid::regprocedure) FROM pg_proc p
			WHERE p.pronamespace = 'extension'::regnamespace AND pg_get_userbyid(p.proowner) = current_user AND current_user <> owner
		UNION ALL SELECT format('TYPE %s', t.oid::regtype) FROM pg_type t
			WHERE t.typnamespace = 'extension'::regnamespace AND t.typname = '_snapshot' AND pg_get_userbyid(t.typowner) <> owner
	LOOP
		EXECUTE format('ALTER %s OWNER TO %I', o.what, owner);
	END LOOP;
END
$do$;
