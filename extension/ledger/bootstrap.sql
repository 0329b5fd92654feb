-- Extensions from SQL. The functions have the rights of their caller. Those that
-- people call do not know where their operators come from, because they have to
-- see the caller's search_path; so they only pass on, and the others have a path
-- of their own. What is set inside of them is as before when they return.
--
-- To let another role install:
--   GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA extension TO somebody;
--   GRANT INSERT, UPDATE, DELETE ON extension.installed, extension.object TO somebody;
--   GRANT CREATE ON DATABASE app TO somebody;
-- The last is for the server's own extensions, for packages with a schema of their
-- own, and to make a schema to install into. CREATE SCHEMA somebody AUTHORIZATION
-- somebody will do for the others; CREATE on a schema of another owner will not, as
-- what that one puts there the script could call. Somebody then decides what an
-- uninstallation by another drops: trust is needed.

-- _describe says what there is to know about objects.
CREATE OR REPLACE FUNCTION extension._describe(classids oid[], objids oid[])
RETURNS TABLE (place integer, type text, names text[], args text[], identity text, owner text, extension text, grantees text[], md5 text)
LANGUAGE sql SET search_path = pg_catalog, pg_temp SET quote_all_identifiers = off SET DateStyle = 'ISO, YMD' SET IntervalStyle = postgres SET TimeZone = 'UTC'
SET extra_float_digits = 1 SET bytea_output = hex SET xmlbinary = base64 AS $function$
SELECT d.place, d.type, d.names, d.args, d.identity, d.owner::text, d.extension::text, d.grantees, d.md5 FROM (
$describe$
) AS d(place, type, names, args, identity, owner, extension, grantees, md5)
$function$;

-- version_compare orders versions as the program does: Debian's order, with
-- pre-releases before the release. -1, 0 or 1.
CREATE OR REPLACE FUNCTION extension.version_compare(a text, b text) RETURNS integer
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $function$
DECLARE
	v text; part text;
	epochs text[] := '{}'; upstreams text[] := '{}'; revisions text[] := '{}';
	l text; r text; x text; y text; c integer; d integer; n integer;
BEGIN
	FOREACH v IN ARRAY ARRAY[a, b] LOOP
		part := coalesce(substring(v FROM '^([0-9]+):'), '');
		epochs := epochs || part;
		IF part <> '' THEN
			v := substr(v, length(part) + 2);
		END IF;
		v := regexp_replace(v, '([0-9])[-._~]?alpha(?![A-Za-z])', '\1~alpha', 'gi');
		v := regexp_replace(v, '([0-9])[-._~]?a(?=[-._]?[0-9])', '\1~alpha', 'gi');
		v := regexp_replace(v, '([0-9])[-._~]?beta(?![A-Za-z])', '\1~beta', 'gi');
		v := regexp_replace(v, '([0-9])[-._~]?b(?=[-._]?[0-9])', '\1~beta', 'gi');
		v := regexp_replace(v, '([0-9])[-._~]?dev(el)?(?![A-Za-z])', '\1~~dev', 'gi');
		v := regexp_replace(v, '([0-9])[-._~]?pre(?![A-Za-z])', '\1~pre', 'gi');
		v := regexp_replace(v, '([0-9])[-._~]?rc(?![A-Za-z])', '\1~rc', 'gi');
		part := coalesce(substring(v FROM '-([^-]*)$'), '');
		revisions := revisions || part;
		upstreams := upstreams || CASE WHEN strpos(v, '-') > 0 THEN substr(v, 1, length(v) - length(part) - 1) ELSE v END;
	END LOOP;
	FOR n IN 1..3 LOOP
		l := CASE n WHEN 1 THEN epochs[1] WHEN 2 THEN upstreams[1] ELSE revisions[1] END;
		r := CASE n WHEN 1 THEN epochs[2] WHEN 2 THEN upstreams[2] ELSE revisions[2] END;
		WHILE l <> '' OR r <> '' LOOP
			x := substring(l FROM '^[^0-9]*');
			y := substring(r FROM '^[^0-9]*');
			FOR i IN 1..greatest(length(x), length(y)) LOOP
				-- "~", then the end or a number, then letters, then the rest
				part := substr(x, i, 1);
				c := CASE WHEN part = '' THEN 0 WHEN part = '~' THEN -1 WHEN part ~ '[A-Za-z]' THEN ascii(part) + 1 ELSE ascii(part) + 257 END;
				part := substr(y, i, 1);
				d := CASE WHEN part = '' THEN 0 WHEN part = '~' THEN -1 WHEN part ~ '[A-Za-z]' THEN ascii(part) + 1 ELSE ascii(part) + 257 END;
				IF c <> d THEN
					RETURN sign(c - d);
				END IF;
			END LOOP;
			l := substr(l, length(x) + 1);
			r := substr(r, length(y) + 1);
			x := substring(l FROM '^[0-9]*');
			y := substring(r FROM '^[0-9]*');
			l := substr(l, length(x) + 1);
			r := substr(r, length(y) + 1);
			x := ltrim(x, '0');
			y := ltrim(y, '0');
			IF length(x) <> length(y) THEN
				RETURN sign(length(x) - length(y));
			ELSIF x <> y THEN
				RETURN CASE WHEN x COLLATE "C" < y COLLATE "C" THEN -1 ELSE 1 END;
			END IF;
		END LOOP;
	END LOOP;
	RETURN 0;
END
$function$;

-- _allows is whether a version is in a range, see relationsJSON. No version is
-- in no range but the one that has all.
CREATE OR REPLACE FUNCTION extension._allows(version text, range jsonb) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $function$
DECLARE
	k jsonb; c integer;
BEGIN
	FOR k IN SELECT jsonb_array_elements(range) LOOP
		c := extension.version_compare(version, k->>'version');
		IF NOT coalesce(CASE k->>'op' WHEN '<' THEN c < 0 WHEN '<=' THEN c <= 0 WHEN '=' THEN c = 0
			WHEN '>=' THEN c >= 0 WHEN '>' THEN c > 0 WHEN '!=' THEN c <> 0 END, false) THEN
			RETURN false;
		END IF;
	END LOOP;
	RETURN true;
END
$function$;

-- _matches is whether an extension, by its name or what it provides, is one that
-- a relation means.
CREATE OR REPLACE FUNCTION extension._matches(name text, version text, provides jsonb, relation jsonb) RETURNS boolean
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $function$
	SELECT relation->>'scope' = '' AND relation->>'feature' = '' AND (
		name = relation->>'name' AND extension._allows(version, relation->'range')
		OR EXISTS (SELECT FROM jsonb_array_elements(provides) p
			WHERE p->>'name' = relation->>'name' AND extension._allows(p->>'version', relation->'range')))
$function$;

-- _state is what is installed: {name: {version, relations, schema, mode}}.
CREATE OR REPLACE FUNCTION extension._state() RETURNS jsonb
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $function$
	SELECT coalesce(jsonb_object_agg(name, jsonb_build_object('version', version, 'relations', relations, 'schema', schema, 'mode', mode)), '{}')
	FROM (
		SELECT e.extname::text AS name, e.extversion AS version, n.nspname::text AS schema, coalesce(i.mode, 'native') AS mode,
			CASE WHEN i.version = e.extversion THEN i.relations ELSE '{"depends": [], "conflicts": [], "provides": []}' END AS relations
		FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace
			LEFT JOIN extension.installed i ON i.name = e.extname::text AND i.mode <> 'module'
		UNION ALL
		SELECT i.name, i.version, i.schema, i.mode, i.relations FROM extension.installed i WHERE i.mode = 'module'
		UNION ALL
		SELECT 'postgresql', split_part(current_setting('server_version'), ' ', 1), 'pg_catalog', 'server', '{"depends": [], "conflicts": [], "provides": []}'
	) s
$function$;

-- _offers are the versions that could be installed now of what has a name or
-- provides it, the best first.
CREATE OR REPLACE FUNCTION extension._offers(wanted text)
RETURNS TABLE (name text, version text, release text, relations jsonb, schema text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $function$
	WITH offer AS (
		SELECT v.name::text, v.version, NULL::text AS release, v.schema::text,
			jsonb_build_object('conflicts', '[]'::jsonb, 'provides', '[]'::jsonb, 'depends', coalesce((
				SELECT jsonb_agg(jsonb_build_array(jsonb_build_object('name', r, 'scope', '', 'feature', '', 'text', r, 'range', '[]'::jsonb)))
				FROM unnest(v.requires::text[]) r), '[]'::jsonb)) AS relations
		FROM pg_available_extension_versions() v
		WHERE v.name::text = wanted AND (NOT v.superuser OR v.trusted OR (SELECT rolsuper FROM pg_roles WHERE rolname = current_user))
			AND has_database_privilege(current_database(), 'CREATE')
		UNION ALL
		-- An unsigned package must not take the name of what the server has files of.
		SELECT p.name, p.extversion, p.version, nullif(p.schema, ''), p.relations
		FROM extension.package p JOIN extension.path h ON h.name = p.name AND h.version = p.version AND h.from_version = ''
		WHERE (p.name = wanted OR p.relations->'provides' @> jsonb_build_array(jsonb_build_object('name', wanted)))
			AND extension._allows(split_part(current_setting('server_version'), ' ', 1), p.relations->'postgres')
			AND (p.signed_by <> '' OR NOT EXISTS (SELECT FROM pg_available_extensions() a WHERE a.name::text = p.name))
	)
	SELECT o.name, o.version, o.release, o.relations, o.schema FROM offer o
	ORDER BY o.name = wanted DESC, o.name COLLATE "C",
		(SELECT count(*) FROM offer l WHERE l.name = o.name AND extension.version_compare(l.version, o.version) < 0) DESC,
		o.release IS NULL DESC,
		(SELECT count(*) FROM offer l WHERE l.name = o.name AND extension.version_compare(l.release, o.release) < 0) DESC
$function$;

-- _order_known is whether SQL knows the order of the versions of a name: it does
-- not if there are scripts that upgrade to what looks like an older version.
CREATE OR REPLACE FUNCTION extension._order_known(wanted text) RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $function$
BEGIN
	RETURN NOT EXISTS (SELECT FROM extension.package p WHERE p.name = wanted AND p.odd_order)
		AND (NOT EXISTS (SELECT FROM pg_available_extensions() a WHERE a.name::text = wanted)
			OR NOT EXISTS (
				WITH u AS MATERIALIZED (SELECT source, target FROM pg_extension_update_paths(wanted) WHERE path IS NOT NULL)
				SELECT FROM u WHERE extension.version_compare(u.source, u.target) >= 0
				AND NOT EXISTS (SELECT FROM u back WHERE back.source = u.target AND back.target = u.source)));
END
$function$;

-- _distance is by how many letters two words differ: left out, added or changed.
CREATE OR REPLACE FUNCTION extension._distance(a text, b text) RETURNS integer
LANGUAGE plpgsql IMMUTABLE STRICT SET search_path = pg_catalog, pg_temp AS $function$
DECLARE
	before integer[] := ARRAY(SELECT generate_series(0, length(b))); now integer[];
BEGIN
	FOR i IN 1..length(a) LOOP
		now := ARRAY[i];
		FOR j IN 1..length(b) LOOP
			now := now || least(before[j + 1] + 1, now[j] + 1, before[j] + CASE WHEN substr(a, i, 1) = substr(b, j, 1) THEN 0 ELSE 1 END);
		END LOOP;
		before := now;
	END LOOP;
	RETURN before[length(b) + 1];
END
$function$;

-- _did_you_mean asks whether one of names was meant, and ends in a space; it is
-- empty if none is near.
CREATE OR REPLACE FUNCTION extension._did_you_mean(wanted text, names text[]) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $function$
	SELECT coalesce((SELECT format('Did you mean %L? ', n.name) FROM unnest(names) n(name),
			LATERAL (SELECT extension._distance(lower(wanted), lower(n.name)) AS letters WHERE abs(length(wanted) - length(n.name)) <= 2) d
		WHERE d.letters <= CASE WHEN length(wanted) < 5 THEN 1 ELSE 2 END ORDER BY d.letters, n.name COLLATE "C" LIMIT 1), '')
$function$;

-- _check_name refuses what is no name, and a name that a version was written to.
CREATE OR REPLACE FUNCTION extension._check_name(verb text, wanted text, version text) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $function$
DECLARE
	-- As in foo=1.0 and foo (>= 1.0, < 2).
	bare text := substring(wanted FROM '^\s*([^\s=<>()!~,]+)\s*[(=<>!~]');
	part text := substring(wanted FROM '[(=<>!~]\s*([^\s()=<>!~,][^\s()=<>,]*)');
BEGIN
	IF btrim(coalesce(wanted, '')) = '' THEN
		RAISE EXCEPTION 'the name of the extension is %', CASE WHEN wanted IS NULL THEN 'NULL' ELSE 'empty' END
			USING ERRCODE = CASE WHEN wanted IS NULL THEN 'null_value_not_allowed' ELSE 'invalid_name' END,
			HINT = format('Name it, for instance: SELECT extension.%s(%L). To see what there is: SELECT * FROM extension.%s().', verb, 'foo',
				CASE verb WHEN 'install' THEN 'available' ELSE 'installed' END);
	ELSIF bare IS NOT NULL AND NOT EXISTS (SELECT FROM extension.package p WHERE p.name = wanted)
		AND NOT EXISTS (SELECT FROM pg_available_extensions() a WHERE a.name::text = wanted) AND NOT extension._state() ? wanted THEN
		IF verb = 'uninstall' THEN
			RAISE EXCEPTION '% is not the name of an extension', quote_literal(wanted) USING ERRCODE = 'invalid_name',
				HINT = format('It goes in whatever version it is: SELECT extension.uninstall(%L).', bare);
		END IF;
		RAISE EXCEPTION '% is not the name of an extension', quote_literal(wanted) USING ERRCODE = 'invalid_name',
			DETAIL = 'A version is an argument of its own: one version, not a range.',
			HINT = format('The newest: SELECT extension.%s(%L). That version: SELECT extension.%1$s(%2$L, %L).', verb, bare, coalesce(nullif(part, ''), '1.0'));
	ELSIF btrim(version) = '' OR version ~ '^\s*[(=<>!~]' THEN
		RAISE EXCEPTION '% is not a version of %', quote_literal(version), wanted USING ERRCODE = 'invalid_parameter_value',
			DETAIL = 'The second argument is one version, not a range.', HINT = format('For the newest leave it out, or NULL: SELECT extension.%s(%L).', verb, wanted);
	END IF;
END
$function$;

-- _unavailable says why nothing of a name can be installed here, although there
-- is something of that name; NULL if there is nothing.
CREATE OR REPLACE FUNCTION extension._unavailable(wanted text) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $function$
DECLARE
	whys text[] := '{}'; why text; p extension.package; closed boolean; here text := split_part(current_setting('server_version'), ' ', 1);
BEGIN
	SELECT bool_and(v.superuser AND NOT v.trusted) INTO closed FROM pg_available_extension_versions() v WHERE v.name::text = wanted;
	IF closed AND NOT (SELECT r.rolsuper FROM pg_roles r WHERE r.rolname = current_user) THEN
		whys := whys || format('the server has its files, and wants a superuser to create it; role "%s" is none', current_user);
	ELSIF closed IS NOT NULL AND NOT has_database_privilege(current_database(), 'CREATE') THEN
		whys := whys || format('the server has its files, and role "%s" has no CREATE on database "%s"', current_user, current_database());
	END IF;
	FOR p IN SELECT k.* FROM extension.package k WHERE k.name = wanted ORDER BY k.version COLLATE "C" LOOP
		why := CASE
			WHEN NOT extension._allows(here, p.relations->'postgres') THEN format('its package %s is for PostgreSQL %s, and this is %s', p.version,
				(SELECT string_agg(concat_ws(' ', k->>'op', k->>'version'), ', ') FROM jsonb_array_elements(p.relations->'postgres') k), here)
			WHEN NOT EXISTS (SELECT FROM extension.path h WHERE h.name = p.name AND h.version = p.version AND h.from_version = '')
				THEN format('its package %s has scripts that upgrade it, and none that installs it', p.version)
			WHEN p.signed_by = '' AND closed IS NOT NULL THEN 'an unsigned package was uploaded, which may not take the name of what the server has files of'
		END;
		CONTINUE WHEN why IS NULL OR why = ANY (whys);
		whys := whys || why;
	END LOOP;
	RETURN nullif(array_to_string(whys, '; '), '');
END
$function$;

-- _judge says which depends or conflicts of a whole set do not hold, as a
-- sentence; NULL if all do. Relations to the server or the node, and to features,
-- of what is installed were judged when it was.
CREATE OR REPLACE FUNCTION extension._judge(chosen jsonb) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $function$
DECLARE
	e record; o record; alternatives jsonb; relation jsonb; met boolean;
BEGIN
	FOR e IN SELECT key, value FROM jsonb_each(chosen) LOOP
		FOR alternatives IN SELECT jsonb_array_elements(e.value->'relations'->'depends') LOOP
			SELECT EXISTS (SELECT FROM jsonb_array_elements(alternatives) a WHERE a->>'scope' <> '' OR a->>'feature' <> ''
				OR EXISTS (SELECT FROM jsonb_each(chosen) c WHERE extension._matches(c.key, c.value->>'version', c.value->'relations'->'provides', a))) INTO met;
			IF NOT met THEN
				RETURN format('%s %s depends on %s, which would not be there', e.key, e.value->>'version',
					(SELECT string_agg(a->>'text', ' | ') FROM jsonb_array_elements(alternatives) a));
			END IF;
		END LOOP;
		FOR relation IN SELECT jsonb_array_elements(c) FROM jsonb_array_elements(e.value->'relations'->'conflicts') c LOOP
			FOR o IN SELECT key, value FROM jsonb_each(chosen) LOOP
				IF o.key <> e.key AND extension._matches(o.key, o.value->>'version', o.value->'relations'->'provides', relation) THEN
					RETURN format('%s %s conflicts with %s, and there is %s %s', e.key, e.value->>'version', relation->>'text', o.key, o.value->>'version');
				END IF;
			END LOOP;
		END LOOP;
	END LOOP;
	RETURN NULL;
END
$function$;

-- _solve chooses versions of what is missing for goals to hold, depth first with
-- all alternatives, highest versions first; what is installed stays as it is.
-- A goal is {"by": who, "alternatives": [relation, ...]}. The result has ok,
-- chosen or why, and the number of steps taken.
CREATE OR REPLACE FUNCTION extension._solve(goals jsonb, chosen jsonb, steps integer) RETURNS jsonb
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $function$
DECLARE
	goal jsonb := goals->0;
	rest jsonb := goals - 0;
	relation jsonb; offer record; result jsonb; why text; known boolean; count integer;
BEGIN
	steps := steps + 1;
	IF steps > 5000 THEN
		RAISE EXCEPTION 'there are too many combinations of versions to try' USING ERRCODE = 'program_limit_exceeded',
			HINT = 'The command "rideau extension install" decides it.';
	END IF;
	IF goal IS NULL THEN
		why := extension._judge(chosen);
		RETURN jsonb_build_object('ok', why IS NULL, 'why', why, 'chosen', chosen, 'steps', steps);
	END IF;
	FOR relation IN SELECT jsonb_array_elements(goal->'alternatives') LOOP
		IF EXISTS (SELECT FROM jsonb_each(chosen) c WHERE extension._matches(c.key, c.value->>'version', c.value->'relations'->'provides', relation)) THEN
			RETURN extension._solve(rest, chosen, steps); -- nothing can be better than to add nothing
		END IF;
	END LOOP;
	FOR relation IN SELECT jsonb_array_elements(goal->'alternatives') LOOP
		IF relation->>'scope' <> '' OR relation->>'feature' <> '' THEN
			why := format('%s depends on %s, which cannot be judged in SQL', goal->>'by', relation->>'text');
			CONTINUE;
		END IF;
		IF chosen ? (relation->>'name') THEN
			why := format('%s %s, and there is %s %s, which would have to be another version', goal->>'by', relation->>'text',
				relation->>'name', chosen->(relation->>'name')->>'version');
			CONTINUE;
		END IF;
		known := NULL;
		count := 0;
		FOR offer IN SELECT * FROM extension._offers(relation->>'name') LOOP
			IF chosen ? offer.name OR NOT extension._matches(offer.name, offer.version, offer.relations->'provides', relation) THEN
				CONTINUE;
			END IF;
			IF known IS NULL THEN
				known := extension._order_known(offer.name);
			END IF;
			IF NOT known AND (relation->'range' <> '[]' OR count > 0) THEN
				RAISE EXCEPTION 'the order of the versions of % cannot be told in SQL', offer.name USING ERRCODE = 'feature_not_supported',
					DETAIL = 'It has scripts that upgrade to a version that looks older.',
					HINT = 'The command "rideau extension install" knows it.';
			END IF;
			count := count + 1;
			IF EXISTS (SELECT FROM jsonb_each(offer.relations) l, jsonb_array_elements(l.value) alternatives, jsonb_array_elements(alternatives) r
				WHERE l.key IN ('depends', 'conflicts') AND (r->>'scope' <> '' OR r->>'feature' <> '')) THEN
				why := format('%s %s has relations to the whole server or to features, which cannot be judged in SQL', offer.name, offer.version);
				CONTINUE;
			END IF;
			result := extension._solve(
				rest || coalesce((SELECT jsonb_agg(jsonb_build_object('by', format('%s %s depends on', offer.name, offer.version), 'alternatives', a))
					FROM jsonb_array_elements(offer.relations->'depends') a), '[]'),
				chosen || jsonb_build_object(offer.name, jsonb_build_object('version', offer.version, 'relations', offer.relations,
					'mode', CASE WHEN offer.release IS NULL THEN 'native' ELSE 'module' END, 'release', offer.release, 'fixed', offer.schema, 'new', true)),
				steps);
			IF (result->>'ok')::boolean THEN
				RETURN result;
			END IF;
			steps := (result->>'steps')::integer;
			why := result->>'why';
		END LOOP;
		IF why IS NULL AND count = 0 THEN
			why := format('%s %s, and %s', goal->>'by', relation->>'text', coalesce(
				(SELECT format('of %s only %s can be installed here', relation->>'name', string_agg(DISTINCT o.version, ', ')) FROM extension._offers(relation->>'name') o
					WHERE o.name = relation->>'name' HAVING count(*) > 0),
				extension._unavailable(relation->>'name'), 'nothing that can be installed here is that'));
		END IF;
	END LOOP;
	RETURN jsonb_build_object('ok', false, 'why', why, 'steps', steps);
END
$function$;

-- _check_schema refuses a target schema in which others may create: what they put
-- there could be called by the script (CVE-2020-14350).
CREATE OR REPLACE FUNCTION extension._check_schema(schema text) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $function$
DECLARE
	who text; owner oid; trusted boolean;
BEGIN
	SELECT n.nspowner, string_agg(DISTINCT CASE g.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(g.grantee)) END, ', ')
	INTO owner, who
	FROM pg_namespace n LEFT JOIN LATERAL (
		SELECT a.grantee FROM aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) a
		WHERE a.privilege_type = 'CREATE' AND a.grantee <> n.nspowner AND a.grantee IS DISTINCT FROM (SELECT r.oid FROM pg_roles r WHERE r.rolname = current_user)
			AND NOT EXISTS (SELECT FROM pg_roles r WHERE r.oid = a.grantee AND r.rolsuper)) g ON true
	WHERE n.nspname = schema GROUP BY n.oid, n.nspowner;
	-- A superuser has the rights of every role, and trusts none of them. Nobody is a
	-- member of pg_database_owner but the database's owner.
	IF pg_get_userbyid(owner) = 'pg_database_owner' THEN
		owner := (SELECT d.datdba FROM pg_database d WHERE d.datname = current_database());
	END IF;
	trusted := EXISTS (SELECT FROM pg_roles r WHERE r.oid = owner AND (r.rolsuper OR r.rolname = current_user))
		OR pg_has_role(owner, 'USAGE') AND NOT (SELECT r.rolsuper FROM pg_roles r WHERE r.rolname = current_user);
	IF schema IS NULL THEN
		RAISE EXCEPTION 'there is no schema to install into' USING ERRCODE = 'invalid_schema_name',
			DETAIL = 'None was named, and no schema of search_path is there.', HINT = 'Name one as the third argument, or set search_path.';
	ELSIF owner IS NULL THEN
		RAISE EXCEPTION 'cannot install into schema %: it does not exist', quote_ident(schema) USING ERRCODE = 'invalid_schema_name',
			HINT = format('Make it first: CREATE SCHEMA %I. Or name another as the third argument.', schema);
	ELSIF schema LIKE 'pg\_%' OR schema = 'information_schema' THEN
		RAISE EXCEPTION 'cannot install into schema %: it is the server''s own', quote_ident(schema) USING ERRCODE = 'invalid_schema_name',
			HINT = 'Name a schema of your own as the third argument.';
	ELSIF who IS NOT NULL OR NOT trusted THEN
		RAISE EXCEPTION 'cannot install into schema %, where others may create', quote_ident(schema) USING ERRCODE = 'insufficient_privilege',
			DETAIL = format('These may create in it: %s. What they put there could be called by the script, with your rights.',
				concat_ws(', ', CASE WHEN NOT trusted THEN quote_ident(pg_get_userbyid(owner)) END, who)),
			HINT = 'Name a schema of your own as the third argument, or revoke CREATE.';
	END IF;
END
$function$;

-- _ours is whether our transaction has written a row that is visible. t is its
-- id, ceiling the end of the snapshot by which the row is visible: rows behind that
-- are visible only to those who have written them.
CREATE OR REPLACE FUNCTION extension._ours(row_xmin xid, t bigint, ceiling bigint) RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $function$
DECLARE
	id bigint := row_xmin::text::bigint - t % 4294967296;
BEGIN
	IF row_xmin::text::bigint < 3 THEN
		RETURN false;
	ELSIF id >= 2147483648 THEN
		id := id - 4294967296;
	ELSIF id < -2147483648 THEN
		id := id + 4294967296;
	END IF;
	id := id + t;
	RETURN id >= t AND (id >= ceiling OR pg_xact_status(id::text::xid8) = 'in progress');
END
$function$;

-- _scan lists all objects (part is NULL), and all rows that a transaction as new
-- as ours has written: those of an object itself (part is ''), and those that are
-- a part of one. mark is that version of that row. Whether a row is ours is asked
-- within the statement that sees it: another one would see more.
CREATE OR REPLACE FUNCTION extension._scan() RETURNS TABLE (classid oid, objid oid, part text, mark text, ours boolean)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $function$
DECLARE
	c record;
	t bigint := pg_current_xact_id()::text::bigint; -- age() counts from it
BEGIN
	FOR c IN SELECT * FROM (VALUES
		(1259, 'pg_class', 'oid', 'true'), (1255, 'pg_proc', 'oid', 'true'), (1247, 'pg_type', 'oid', 'true'), (2605, 'pg_cast', 'oid', 'true'),
		(3456, 'pg_collation', 'oid', 'true'), (2606, 'pg_constraint', 'oid', 'true'), (2607, 'pg_conversion', 'oid', 'true'), (2604, 'pg_attrdef', 'oid', 'true'),
		(2612, 'pg_language', 'oid', 'true'), (2613, 'pg_largeobject_metadata', 'oid', 'true'), (2617, 'pg_operator', 'oid', 'true'), (2616, 'pg_opclass', 'oid', 'true'),
		(2753, 'pg_opfamily', 'oid', 'true'), (2601, 'pg_am', 'oid', 'true'), (2602, 'pg_amop', 'oid', 'true'), (2603, 'pg_amproc', 'oid', 'true'),
		(2618, 'pg_rewrite', 'oid', $q$x.rulename <> '_RETURN'$q$), (2620, 'pg_trigger', 'oid', 'true'), (2615, 'pg_namespace', 'oid', 'true'), (3381, 'pg_statistic_ext', 'oid', 'true'),
		(3601, 'pg_ts_parser', 'oid', 'true'), (3600, 'pg_ts_dict', 'oid', 'true'), (3764, 'pg_ts_template', 'oid', 'true'), (3602, 'pg_ts_config', 'oid', 'true'),
		(2328, 'pg_foreign_data_wrapper', 'oid', 'true'), (1417, 'pg_foreign_server', 'oid', 'true'), (826, 'pg_default_acl', 'oid', 'true'),
		(3079, 'pg_extension', 'oid', 'true'), (3466, 'pg_event_trigger', 'oid', 'true'), (3256, 'pg_policy', 'oid', 'true'), (6104, 'pg_publication', 'oid', 'true'),
		(6106, 'pg_publication_rel', 'oid', 'true'), (6237, 'pg_publication_namespace', 'oid', 'true'), (3576, 'pg_transform', 'oid', 'true')
	) v(class, name, col, cond) LOOP
		CONTINUE WHEN to_regclass('pg_catalog.' || c.name) IS NULL; -- of a later server version
		RETURN QUERY EXECUTE format($q$SELECT %s::oid, x.oid, NULL::text, NULL::text, false FROM pg_catalog.%I x$q$, c.class, c.name);
		RETURN QUERY EXECUTE format($q$SELECT %s::oid, x.oid, '', %L || x.ctid::text || x.xmin::text, extension._ours(x.xmin, %s, pg_snapshot_xmax(pg_current_snapshot())::text::bigint)
			FROM pg_catalog.%I x WHERE age(x.xmin) <= 0 AND %s$q$, c.class, c.name, t, c.name, c.cond);
	END LOOP;
	RETURN QUERY SELECT 1418::oid, x.umid, NULL::text, NULL::text, false FROM pg_user_mappings x;
	FOR c IN SELECT * FROM (VALUES
		('pg_rewrite', '1259', 'ev_class', 'query', $q$x.rulename = '_RETURN'$q$), ('pg_attribute', '1259', 'attrelid', 'column', 'true'), ('pg_attrdef', '1259', 'adrelid', 'column default', 'true'), ('pg_index', '1259', 'indexrelid', 'index', 'true'),
		('pg_sequence', '1259', 'seqrelid', 'sequence', 'true'), ('pg_inherits', '1259', 'inhrelid', 'parent', 'true'), ('pg_partitioned_table', '1259', 'partrelid', 'partition key', 'true'),
		('pg_foreign_table', '1259', 'ftrelid', 'foreign table', 'true'), ('pg_enum', '1247', 'enumtypid', 'enum label', 'true'), ('pg_range', '1247', 'rngtypid', 'range', 'true'),
		('pg_aggregate', '1255', 'aggfnoid', 'aggregate', 'true'), ('pg_ts_config_map', '3602', 'mapcfg', 'mapping', 'true'), ('pg_description', 'x.classoid', 'objoid', 'comment', 'true'),
		('pg_seclabel', 'x.classoid', 'objoid', 'security label', 'true'), ('pg_depend', 'x.classid', 'objid', 'membership in extension', $q$x.deptype IN ('e', 'x')$q$),
		('pg_depend', '1418', 'objid', '', 'x.classid = 1418') -- user mappings, whose table may be closed to us
	) v(name, class, col, part, cond) LOOP
		RETURN QUERY EXECUTE format($q$SELECT (%s)::oid, x.%I::oid, %L::text, %L || x.ctid::text || x.xmin::text, extension._ours(x.xmin, %s, pg_snapshot_xmax(pg_current_snapshot())::text::bigint)
			FROM pg_catalog.%I x WHERE age(x.xmin) <= 0 AND %s$q$, c.class, c.col, c.part, c.name, t, c.name, c.cond);
	END LOOP;
END
$function$;

-- _relations are oid and hash of tables and views without what is written when
-- they get a trigger, a rule, an index or a child.
CREATE OR REPLACE FUNCTION extension._relations(seed bigint) RETURNS SETOF bigint
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $function$
	SELECT x.oid::bigint << 32 | (hashtextextended(ROW(
		x.relname, x.relnamespace, x.reltype, x.reloftype, x.relowner, x.relam, x.relfilenode, x.reltablespace, x.reltoastrelid,
		x.relpersistence, x.relkind, x.relnatts, x.relchecks, x.relrowsecurity, x.relforcerowsecurity, x.relispopulated,
		x.relreplident, x.relispartition, x.relrewrite, x.relacl, x.reloptions, x.relpartbound)::text, seed) & 2147483647)
	FROM pg_class x WHERE x.oid >= 16384 AND x.relkind IN ('r', 'p', 'v', 'm', 'f', 'I')
$function$;

-- _snapshot is what _difference has to know of before.
DO $do$ BEGIN
	IF to_regtype('extension._snapshot') IS NULL THEN
		CREATE TYPE extension._snapshot AS (objects bigint[], written text[], relations bigint[], seed bigint);
	END IF;
END $do$;

CREATE OR REPLACE FUNCTION extension._capture() RETURNS extension._snapshot
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $function$
DECLARE
	s extension._snapshot;
BEGIN
	s.seed := ('x' || replace(gen_random_uuid()::text, '-', ''))::bit(64)::bigint;
	SELECT array_agg(c.classid::bigint << 32 | c.objid::bigint) FILTER (WHERE c.part IS NULL), coalesce(array_agg(c.mark) FILTER (WHERE c.part IS NOT NULL), '{}')
	INTO s.objects, s.written FROM extension._scan() c;
	s.relations := ARRAY(SELECT extension._relations(s.seed));
	RETURN s;
END
$function$;

-- _difference says what our transaction has done since before was taken. The caller's transaction may see what others commit, so rows
-- are ours by their xmin; and what is gone is ours if we hold the lock that
-- dropping takes.
CREATE OR REPLACE FUNCTION extension._difference(before extension._snapshot)
RETURNS TABLE (what text, classid oid, objid oid, parts text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $function$
BEGIN
	RETURN QUERY
	WITH scan AS MATERIALIZED (SELECT s.*, s.classid::bigint << 32 | s.objid::bigint AS id FROM extension._scan() s),
	was AS MATERIALIZED (SELECT u.id FROM unnest(before.objects) u(id)),
	fresh AS MATERIALIZED (
		SELECT s.* FROM scan s WHERE s.part IS NOT NULL AND s.ours AND s.mark <> ALL (before.written)),
	same AS MATERIALIZED (SELECT r.id >> 32 AS oid FROM extension._relations(before.seed) r(id) JOIN unnest(before.relations) b(id) ON b.id = r.id)
	SELECT CASE WHEN w.id IS NULL THEN 'created' ELSE 'changed' END, f.classid, f.objid,
		string_agg(DISTINCT CASE WHEN f.part <> '' THEN f.part
			WHEN f.classid = 1259 AND EXISTS (SELECT FROM same WHERE same.oid = f.objid::bigint) THEN 'flags' ELSE 'definition' END, ', ')
	FROM fresh f LEFT JOIN was w ON w.id = f.id
	WHERE w.id IS NOT NULL OR f.part = ''
	GROUP BY w.id IS NULL, f.classid, f.objid, w.id
	UNION ALL
	SELECT 'dropped', (w.id >> 32)::oid, (w.id & 4294967295)::oid, '' FROM was w
	WHERE NOT EXISTS (SELECT FROM scan s WHERE s.id = w.id AND s.part IS NULL)
		AND EXISTS (SELECT FROM pg_locks l WHERE l.pid = pg_backend_pid() AND l.mode = 'AccessExclusiveLock' AND l.granted AND CASE
			WHEN l.locktype = 'relation' THEN w.id >> 32 = 1259 AND l.relation = (w.id & 4294967295)::oid
			WHEN l.locktype = 'object' THEN l.classid = (w.id >> 32)::oid AND l.objid = (w.id & 4294967295)::oid END);
END
$function$;

-- _address finds an object by its identity; NULL if it is not there.
CREATE OR REPLACE FUNCTION extension._address(type text, names text[], args text[], OUT classid oid, OUT objid oid)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $function$
BEGIN
	SELECT a.classid, a.objid INTO classid, objid FROM pg_get_object_address(type, names, args) a;
EXCEPTION WHEN OTHERS THEN
	-- Which error means that it is not there depends on the type.
	IF sqlstate LIKE '42%' OR sqlstate IN ('3F000', '22023', 'XX000') THEN
		RETURN;
	END IF;
	RAISE;
END
$function$;

-- _drop_command is what drops an object; NULL for what SQL does not know how to.
CREATE OR REPLACE FUNCTION extension._drop_command(type text, names text[], args text[], identity text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $function$
	WITH q AS (SELECT (SELECT string_agg(quote_ident(n), '.' ORDER BY i) FROM unnest(names) WITH ORDINALITY u(n, i)) AS name,
		(SELECT string_agg(quote_ident(n), '.' ORDER BY i) FROM unnest(names) WITH ORDINALITY u(n, i) WHERE i <= 2) AS tab,
		(SELECT string_agg(quote_ident(n), '.' ORDER BY i) FROM unnest(names) WITH ORDINALITY u(n, i) WHERE i >= 2) AS tail,
		array_to_string(args, ', ') AS list)
	SELECT CASE
		WHEN type IN ('table', 'index', 'sequence', 'view', 'materialized view', 'foreign table', 'collation', 'conversion', 'text search parser',
			'text search dictionary', 'text search template', 'text search configuration', 'schema', 'language', 'access method',
			'foreign-data wrapper', 'server', 'extension', 'event trigger', 'publication')
			THEN format('DROP %s %s RESTRICT', CASE type WHEN 'foreign-data wrapper' THEN 'FOREIGN DATA WRAPPER' ELSE upper(type) END, q.name)
		WHEN type = 'composite type' THEN format('DROP TYPE %s RESTRICT', q.name)
		WHEN type = 'statistics object' THEN format('DROP STATISTICS %s RESTRICT', q.name)
		WHEN type IN ('function', 'procedure', 'aggregate') THEN format('DROP ROUTINE %s(%s) RESTRICT', q.name, q.list)
		WHEN type = 'type' THEN format('DROP TYPE %s RESTRICT', names[1])
		WHEN type = 'cast' THEN format('DROP CAST (%s AS %s) RESTRICT', names[1], args[1])
		WHEN type = 'transform' THEN format('DROP TRANSFORM FOR %s LANGUAGE %I RESTRICT', names[1], args[1])
		WHEN type = 'operator' AND cardinality(args) = 2 THEN format('DROP OPERATOR %I.%s (%s) RESTRICT', names[1], names[2], q.list)
		WHEN type = 'operator' THEN format('DROP OPERATOR %I.%s (%s) RESTRICT', names[1], names[2],
			CASE WHEN identity LIKE '%,NONE)' THEN q.list || ', NONE' ELSE 'NONE, ' || q.list END)
		WHEN type IN ('operator class', 'operator family') THEN format('DROP %s %s USING %I RESTRICT', upper(type), q.tail, names[1])
		WHEN type = 'operator of access method' THEN format('ALTER OPERATOR FAMILY %I.%I USING %I DROP OPERATOR %s (%s)', names[2], names[3], names[1], names[4], q.list)
		WHEN type = 'function of access method' THEN format('ALTER OPERATOR FAMILY %I.%I USING %I DROP FUNCTION %s (%s)', names[2], names[3], names[1], names[4], q.list)
		WHEN type IN ('trigger', 'rule') THEN format('DROP %s %I ON %s RESTRICT', upper(type), names[3], q.tab)
		WHEN type = 'policy' THEN format('DROP POLICY %I ON %s', names[3], q.tab)
		WHEN type = 'table constraint' THEN format('ALTER TABLE %s DROP CONSTRAINT %I RESTRICT', q.tab, names[3])
		WHEN type = 'domain constraint' THEN format('ALTER DOMAIN %s DROP CONSTRAINT %I RESTRICT', names[1], args[1])
		WHEN type = 'default value' THEN format('ALTER TABLE %s ALTER COLUMN %I DROP DEFAULT', q.tab, names[3])
		WHEN type = 'user mapping' THEN format('DROP USER MAPPING FOR %s SERVER %I', CASE names[1] WHEN 'public' THEN 'PUBLIC' ELSE quote_ident(names[1]) END, args[1])
		WHEN type = 'publication relation' THEN format('ALTER PUBLICATION %I DROP TABLE %s', args[1], q.name)
		WHEN type = 'publication namespace' THEN format('ALTER PUBLICATION %I DROP TABLES IN SCHEMA %s', args[1], q.name)
		WHEN type = 'large object' THEN format('SELECT pg_catalog.lo_unlink(%s)', names[1])
	END FROM q
$function$;

-- _run executes the statements of one script of a package.
CREATE OR REPLACE FUNCTION extension._run(p extension.package, from_version text, to_version text, schema text, chosen jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET check_function_bodies = off SET standard_conforming_strings = on AS $function$
DECLARE
	st record; sql text; value text; required text; path text; role text := current_user; was_role text := current_setting('role');
	message text; detail text; hint text; state text; context text;
BEGIN
	path := quote_ident(schema);
	FOR required IN
		SELECT DISTINCT chosen->(r->>'name')->>'schema' FROM jsonb_array_elements(p.relations->'depends') a, jsonb_array_elements(a) r
		WHERE chosen ? (r->>'name') LOOP
		IF required NOT IN (schema, 'pg_catalog') THEN
			path := path || ', ' || quote_ident(required);
		END IF;
	END LOOP;
	path := path || ', pg_temp';
	FOR st IN SELECT s.* FROM extension.statement s WHERE s.name = p.name AND s.version = p.version
		AND s.from_version = _run.from_version AND s.to_version = _run.to_version ORDER BY s.seq LOOP
		sql := st.sql;
		-- Values that could end a string are refused (CVE-2023-39417).
		IF strpos(sql, '@extowner@') > 0 THEN
			IF role ~ '["$''\\]' THEN
				RAISE EXCEPTION '%:%: invalid character in extension owner: must not contain any of "%"', st.file, st.line, '"$''\' USING ERRCODE = 'invalid_name';
			END IF;
			sql := replace(sql, '@extowner@', quote_ident(role));
		END IF;
		IF NOT p.relocatable AND strpos(sql, '@extschema@') > 0 THEN
			IF schema ~ '["$''\\]' THEN
				RAISE EXCEPTION '%:%: invalid character in extension "%" schema: must not contain any of "%"', st.file, st.line, p.name, '"$''\' USING ERRCODE = 'invalid_name';
			END IF;
			sql := replace(sql, '@extschema@', quote_ident(schema));
		END IF;
		FOR required IN SELECT DISTINCT m[1] FROM regexp_matches(sql, '@extschema:([^@\s]+)@', 'g') m LOOP
			value := chosen->required->>'schema';
			IF value IS NULL OR NOT EXISTS (SELECT FROM jsonb_array_elements(p.relations->'depends') a, jsonb_array_elements(a) r WHERE r->>'name' = required) THEN
				RAISE EXCEPTION '%:%: "%" is not something that % depends on', st.file, st.line, '@extschema:' || required || '@', p.name USING ERRCODE = 'undefined_object';
			ELSIF value ~ '["$''\\]' THEN
				RAISE EXCEPTION '%:%: invalid character in extension "%" schema: must not contain any of "%"', st.file, st.line, required, '"$''\' USING ERRCODE = 'invalid_name';
			END IF;
			sql := replace(sql, '@extschema:' || required || '@', quote_ident(value));
		END LOOP;
		BEGIN
			PERFORM set_config('search_path', path, true);
			EXECUTE sql;
		EXCEPTION WHEN OTHERS THEN
			GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT, state = RETURNED_SQLSTATE, context = PG_EXCEPTION_CONTEXT;
			-- Of the context, what is inside of the statement.
			context := CASE WHEN strpos(context, sql) > 1 THEN rtrim(regexp_replace(left(context, strpos(context, sql) - 1), '[^\n]*$', ''), E'\n') ELSE '' END;
			RAISE EXCEPTION '%: %:%: %', p.name, st.file, st.line, message USING ERRCODE = state, DETAIL = concat_ws(E'\n', nullif(detail, ''), nullif(context, '')),
				HINT = coalesce(nullif(hint, ''), format('The statement begins with: %s', left(split_part(st.sql, E'\n', 1), 80)));
		END;
		PERFORM set_config('search_path', 'pg_catalog, pg_temp', true);
		IF current_user <> role THEN
			PERFORM set_config('role', was_role, true);
			IF current_user <> role THEN
				RAISE EXCEPTION '%: %:%: the script has changed the role', p.name, st.file, st.line USING ERRCODE = 'insufficient_privilege';
			END IF;
		END IF;
	END LOOP;
END
$function$;

-- _own are the objects of a module that are still there, and what belongs to them.
CREATE OR REPLACE FUNCTION extension._own(wanted text) RETURNS bigint[]
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $function$
	WITH RECURSIVE own AS (
		SELECT a.classid, a.objid FROM extension.object o, extension._address(o.type, o.object_names, o.object_args) a
		WHERE o.name = wanted AND a.objid IS NOT NULL
		UNION
		SELECT d.classid, d.objid FROM own JOIN pg_depend d ON d.refclassid = own.classid AND d.refobjid = own.objid
		WHERE d.deptype IN ('i', 'a', 'P', 'S') AND d.objsubid = 0)
	SELECT coalesce(array_agg(classid::bigint << 32 | objid::bigint), '{}') FROM own
$function$;

-- _foreign is what a script did to objects that are not own, as a sentence; NULL
-- if nothing (CVE-2022-2625). What looks created and belongs to another role was
-- there before.
CREATE OR REPLACE FUNCTION extension._foreign(difference jsonb, own bigint[]) RETURNS text
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $function$
	SELECT string_agg(CASE d->>'what'
		WHEN 'dropped' THEN format('object %s of %s (dropped)', d->>'objid', ((d->>'classid')::oid)::regclass)
		WHEN 'created' THEN format('%s %s (belongs to %s)', o.type, o.identity, quote_ident(o.owner))
		ELSE format('%s %s (%s)', o.type, o.identity, d->>'parts') END, ', ')
	FROM (SELECT x AS d, count(*) FILTER (WHERE x->>'what' <> 'dropped') OVER (ORDER BY n) AS n FROM jsonb_array_elements(difference) WITH ORDINALITY u(x, n)) e
		-- Servers before 14 make an error of describing what is gone.
		LEFT JOIN extension._describe(
			ARRAY(SELECT (x->>'classid')::oid FROM jsonb_array_elements(difference) WITH ORDINALITY u(x, n) WHERE x->>'what' <> 'dropped' ORDER BY u.n),
			ARRAY(SELECT (x->>'objid')::oid FROM jsonb_array_elements(difference) WITH ORDINALITY u(x, n) WHERE x->>'what' <> 'dropped' ORDER BY u.n)) o
			ON o.place = e.n AND d->>'what' <> 'dropped'
	WHERE CASE d->>'what'
		WHEN 'created' THEN coalesce(o.owner, current_user) <> current_user AND coalesce(o.names[1], '') NOT LIKE ALL ('{pg\\_temp%,pg\\_toast\\_temp%}')
		WHEN 'changed' THEN d->>'parts' <> 'flags' AND (d->>'classid')::bigint << 32 | (d->>'objid')::bigint <> ALL (own)
		ELSE (d->>'classid')::bigint << 32 | (d->>'objid')::bigint <> ALL (own) END
$function$;

-- _standing are the created objects that need a DROP of their own.
CREATE OR REPLACE FUNCTION extension._standing(difference jsonb) RETURNS TABLE (classid oid, objid oid)
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $function$
	WITH created AS MATERIALIZED (
		SELECT (d->>'classid')::oid AS classid, (d->>'objid')::oid AS objid FROM jsonb_array_elements(difference) d WHERE d->>'what' = 'created')
	SELECT c.classid, c.objid FROM created c
	WHERE NOT EXISTS (
		SELECT FROM pg_depend d WHERE d.classid = c.classid AND d.objid = c.objid AND d.objsubid = 0 AND (d.refclassid, d.refobjid) <> (c.classid, c.objid)
		AND (d.deptype IN ('i', 'P', 'S', 'e')
			OR d.deptype = 'a' AND EXISTS (SELECT FROM created r WHERE r.classid = d.refclassid AND r.objid = d.refobjid)))
	ORDER BY 1, 2
$function$;

-- _apply runs the scripts of a package, judges what they did, and records it.
CREATE OR REPLACE FUNCTION extension._apply(p extension.package, from_version text, target text, chosen jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $function$
DECLARE
	before extension._snapshot; steps text[]; step text; at text := from_version; difference jsonb; problem text; own bigint[]; setting jsonb;
	classids oid[]; objids oid[];
BEGIN
	SELECT h.steps INTO steps FROM extension.path h WHERE h.name = p.name AND h.version = p.version AND h.from_version = _apply.from_version;
	own := extension._own(p.name);
	before := extension._capture();
	IF p.schema <> '' AND NOT EXISTS (SELECT FROM pg_namespace n WHERE n.nspname = p.schema) THEN
		EXECUTE format('CREATE SCHEMA %I', p.schema);
	END IF;
	PERFORM extension._check_schema(target);
	FOREACH step IN ARRAY steps LOOP
		PERFORM extension._run(p, at, step, target, chosen);
		at := step;
	END LOOP;
	SELECT coalesce(jsonb_agg(jsonb_build_object('what', d.what, 'classid', d.classid::bigint, 'objid', d.objid::bigint, 'parts', d.parts)), '[]')
	INTO difference FROM extension._difference(before) d;
	problem := extension._foreign(difference, own);
	IF problem IS NOT NULL THEN
		RAISE EXCEPTION 'the script of % % changed what was there before it', p.name, p.extversion USING ERRCODE = 'object_not_in_prerequisite_state',
			DETAIL = problem, HINT = 'Somebody may have put it there for the script to fall over. Rename or drop it if it is yours.';
	END IF;

	-- What it consisted of and still does, and what it has made.
	SELECT array_agg(x.classid ORDER BY x.old DESC, x.seq, x.classid, x.objid), array_agg(x.objid ORDER BY x.old DESC, x.seq, x.classid, x.objid)
	INTO classids, objids FROM (
		SELECT a.classid, a.objid, true AS old, o.seq FROM extension.object o, extension._address(o.type, o.object_names, o.object_args) a
			WHERE o.name = p.name AND a.objid IS NOT NULL
		UNION ALL
		SELECT s.classid, s.objid, false, 0 FROM extension._standing(difference) s) x;
	DELETE FROM extension.object o WHERE o.name = p.name;
	INSERT INTO extension.installed AS i (name, version, mode, schema, control, depends, conflicts, sha256, settings, uninstall, relations)
	VALUES (p.name, p.extversion, 'module', target, p.control, p.depends, p.conflicts, p.sha256, p.settings, p.uninstall,
		p.relations || jsonb_build_object('major', current_setting('server_version_num')::integer / 10000))
	ON CONFLICT (name) DO UPDATE SET (version, mode, schema, control, depends, conflicts, sha256, settings, uninstall, relations) =
		(EXCLUDED.version, EXCLUDED.mode, EXCLUDED.schema, EXCLUDED.control, EXCLUDED.depends, EXCLUDED.conflicts, EXCLUDED.sha256, EXCLUDED.settings, EXCLUDED.uninstall, EXCLUDED.relations);
	INSERT INTO extension.object (name, seq, type, object_names, object_args, identity, definition_md5)
	SELECT p.name, row_number() OVER (ORDER BY d.place), d.type, d.names, d.args, d.identity, coalesce(d.md5, '')
	FROM extension._describe(classids, objids) d WHERE coalesce(d.names[1], '') NOT LIKE 'pg\_temp%' AND coalesce(d.names[1], '') NOT LIKE 'pg\_toast\_temp%';

	FOR setting IN SELECT jsonb_array_elements(p.settings) LOOP
		IF setting->>'Scope' = 'system' OR strpos(setting->>'Name', '.') = 0 THEN
			RAISE EXCEPTION '% sets %, which cannot be done in SQL', p.name, setting->>'Name' USING ERRCODE = 'feature_not_supported',
				HINT = 'The command "rideau extension install" does it.';
		END IF;
		BEGIN
			EXECUTE format('ALTER %s SET %s = %L',
				CASE setting->>'Scope' WHEN 'role' THEN format('ROLE %I', setting->>'Role') ELSE format('DATABASE %I', current_database()) END,
				(SELECT string_agg(quote_ident(n), '.' ORDER BY i) FROM unnest(string_to_array(setting->>'Name', '.')) WITH ORDINALITY u(n, i)), setting->>'Value');
		EXCEPTION WHEN insufficient_privilege THEN
			RAISE EXCEPTION '% sets %, which role "%" may not', p.name, setting->>'Name', current_user USING ERRCODE = 'insufficient_privilege',
				DETAIL = sqlerrm, HINT = CASE WHEN sqlerrm LIKE '%"' || (setting->>'Name') || '"%' AND current_setting('server_version_num')::integer >= 150000
					THEN format('Have a superuser say: GRANT SET ON PARAMETER %s TO %I;', setting->>'Name', current_user)
					ELSE format('Without its settings: rideau extension install %s --no-conf', p.name) END;
		END;
	END LOOP;
END
$function$;

-- _carry_out installs what _solve has added, dependencies first.
CREATE OR REPLACE FUNCTION extension._carry_out(chosen jsonb, target text) RETURNS SETOF text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $function$
DECLARE
	present jsonb; e record; progress boolean; p extension.package; into_schema text;
BEGIN
	SELECT coalesce(jsonb_object_agg(c.key, c.value), '{}') INTO present FROM jsonb_each(chosen) c WHERE NOT c.value ? 'new';
	LOOP
		progress := false;
		FOR e IN SELECT c.key, c.value FROM jsonb_each(chosen) c WHERE NOT present ? c.key ORDER BY c.key COLLATE "C" LOOP
			CONTINUE WHEN EXISTS (SELECT FROM jsonb_array_elements(e.value->'relations'->'depends') alternatives
				WHERE NOT EXISTS (SELECT FROM jsonb_array_elements(alternatives) a, jsonb_each(present) x
					WHERE extension._matches(x.key, x.value->>'version', x.value->'relations'->'provides', a)));
			into_schema := coalesce(e.value->>'fixed', target);
			IF e.value->>'mode' = 'native' THEN
				IF e.value->>'fixed' IS NULL THEN
					PERFORM extension._check_schema(into_schema);
				END IF;
				EXECUTE format('CREATE EXTENSION %I %s VERSION %L', e.key,
					CASE WHEN e.value->>'fixed' IS NULL THEN format('SCHEMA %I', into_schema) END, e.value->>'version');
			ELSE
				SELECT * INTO STRICT p FROM extension.package k WHERE k.name = e.key AND k.version = e.value->>'release';
				PERFORM extension._apply(p, '', into_schema, present || jsonb_build_object(e.key, e.value || jsonb_build_object('schema', into_schema)));
			END IF;
			present := present || jsonb_build_object(e.key, e.value || jsonb_build_object('schema', into_schema));
			progress := true;
			RETURN NEXT format('installed %s %s', e.key, e.value->>'version');
		END LOOP;
		EXIT WHEN NOT progress;
	END LOOP;
	IF EXISTS (SELECT FROM jsonb_each(chosen) c WHERE NOT present ? c.key) THEN
		RAISE EXCEPTION 'these depend on each other in a circle: %', (SELECT string_agg(c.key, ', ') FROM jsonb_each(chosen) c WHERE NOT present ? c.key)
			USING ERRCODE = 'feature_not_supported';
	END IF;
END
$function$;

CREATE OR REPLACE FUNCTION extension._goal(name text, version text) RETURNS jsonb
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $function$
	SELECT jsonb_build_array(jsonb_build_object('by', 'asked for was', 'alternatives', jsonb_build_array(jsonb_build_object('name', name, 'scope', '', 'feature', '',
		'text', name || coalesce(' (= ' || version || ')', ''),
		'range', CASE WHEN version IS NULL THEN '[]'::jsonb ELSE jsonb_build_array(jsonb_build_object('op', '=', 'version', version)) END))))
$function$;

CREATE OR REPLACE FUNCTION extension._install(wanted text, version text, target text) RETURNS SETOF text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $function$
DECLARE
	chosen jsonb; goal jsonb; result jsonb; versions text[]; offers integer; met boolean; why text;
BEGIN
	PERFORM extension._check_name('install', wanted, version);
	PERFORM pg_advisory_xact_lock(1380533317, 1163416576);
	chosen := extension._state();
	IF chosen ? wanted THEN
		IF version IS NULL OR extension.version_compare(chosen->wanted->>'version', version) = 0 THEN
			RETURN NEXT format('%s %s is installed already', wanted, chosen->wanted->>'version');
			RETURN;
		END IF;
		RAISE EXCEPTION '% is installed, in version %', wanted, chosen->wanted->>'version' USING ERRCODE = 'duplicate_object',
			HINT = format('To have another version: SELECT extension.upgrade(%L, %L);', wanted, version);
	END IF;
	goal := extension._goal(wanted, version);
	SELECT array_agg(DISTINCT o.version ORDER BY o.version) FILTER (WHERE o.name = wanted), count(*),
		bool_or(extension._matches(o.name, o.version, o.relations->'provides', goal->0->'alternatives'->0))
	INTO versions, offers, met FROM extension._offers(wanted) o;
	IF offers = 0 THEN
		why := extension._unavailable(wanted);
		IF why IS NULL THEN
			RAISE EXCEPTION 'there is no extension %', quote_literal(wanted) USING ERRCODE = 'undefined_object',
				DETAIL = 'No package of that name was uploaded, and the server has no files of it.',
				HINT = extension._did_you_mean(wanted, ARRAY(SELECT p.name FROM extension.package p UNION SELECT a.name::text FROM pg_available_extensions() a))
					|| format('To bring a package: rideau extension upload %s', CASE WHEN wanted ~ '^[A-Za-z0-9_.+-]+$' THEN wanted ELSE quote_literal(wanted) END);
		END IF;
		RAISE EXCEPTION 'cannot install %: %', wanted, why USING ERRCODE = CASE WHEN why LIKE 'the server has its files, and %' THEN 'insufficient_privilege' ELSE 'object_not_in_prerequisite_state' END,
			HINT = CASE WHEN why LIKE '%wants a superuser%' THEN format('Have a superuser say: CREATE EXTENSION %I;', wanted)
				WHEN why LIKE '%has no CREATE on database%' THEN format('Have the owner of the database say: GRANT CREATE ON DATABASE %I TO %I;', current_database(), current_user)
				WHEN why LIKE 'an unsigned package%' THEN 'Upload one from a registry that is signed.'
				ELSE format('Another version of it may do: rideau extension upload %s', wanted) END;
	ELSIF NOT met AND version IS NOT NULL THEN
		RAISE EXCEPTION 'there is no version % of %', quote_literal(version), wanted USING ERRCODE = 'undefined_object',
			DETAIL = format('What can be installed here: %s.', coalesce(array_to_string(versions, ', '), 'others that provide it')),
			HINT = format('To bring it: rideau extension upload %s', quote_literal(wanted || '=' || version));
	END IF;
	result := extension._solve(goal, chosen, 0);
	IF NOT (result->>'ok')::boolean THEN
		RAISE EXCEPTION 'cannot install %', wanted USING ERRCODE = 'object_not_in_prerequisite_state', DETAIL = result->>'why',
			HINT = 'SQL leaves what is installed as it is; the command "rideau extension install" may find a way.';
	END IF;
	RETURN QUERY SELECT extension._carry_out(result->'chosen', target);
END
$function$;

CREATE OR REPLACE FUNCTION extension._upgrade(wanted text, to_version text, target text) RETURNS SETOF text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $function$
DECLARE
	state jsonb; now_version text; mode text; offer record; result jsonb; why text; p extension.package; tried integer := 0; line text;
BEGIN
	PERFORM extension._check_name('upgrade', wanted, to_version);
	PERFORM pg_advisory_xact_lock(1380533317, 1163416576);
	state := extension._state();
	IF NOT state ? wanted OR wanted = 'postgresql' THEN
		RAISE EXCEPTION '% is not installed', wanted USING ERRCODE = 'undefined_object',
			HINT = extension._did_you_mean(wanted, ARRAY(SELECT k FROM jsonb_object_keys(state) k WHERE k <> 'postgresql')) || 'To see what is: SELECT * FROM extension.installed()';
	END IF;
	now_version := state->wanted->>'version';
	mode := state->wanted->>'mode';
	IF to_version IS NOT NULL AND extension.version_compare(to_version, now_version) = 0 THEN
		RETURN NEXT format('%s is %s already', wanted, now_version);
		RETURN;
	ELSIF mode NOT IN ('native', 'module') THEN
		RAISE EXCEPTION '% is installed in mode %, which SQL cannot upgrade', wanted, mode USING ERRCODE = 'feature_not_supported',
			HINT = 'The command "rideau extension upgrade" can.';
	ELSIF NOT extension._order_known(wanted) AND to_version IS NULL THEN
		RAISE EXCEPTION 'the order of the versions of % cannot be told in SQL', wanted USING ERRCODE = 'feature_not_supported', HINT = 'Name the version as the second argument.';
	END IF;
	FOR offer IN
		WITH o AS (
			SELECT k.extversion AS version, k.version AS release, k.relations FROM extension.package k
				JOIN extension.path h ON h.name = k.name AND h.version = k.version AND h.from_version = now_version
			WHERE mode = 'module' AND k.name = wanted AND extension._allows(split_part(current_setting('server_version'), ' ', 1), k.relations->'postgres')
				AND (k.signed_by <> '' OR NOT EXISTS (SELECT FROM pg_available_extensions() a WHERE a.name::text = wanted))
			UNION ALL
			SELECT u.target, NULL, jsonb_build_object('depends', '[]'::jsonb, 'conflicts', '[]'::jsonb, 'provides', '[]'::jsonb)
			FROM (SELECT wanted WHERE mode = 'native' AND EXISTS (SELECT FROM pg_available_extensions() a WHERE a.name::text = wanted)) w(n), pg_extension_update_paths(w.n) u
			WHERE u.source = now_version AND u.path IS NOT NULL)
		SELECT o.* FROM o WHERE CASE WHEN to_version IS NULL THEN extension.version_compare(o.version, now_version) > 0
			ELSE extension.version_compare(o.version, to_version) = 0 END
		ORDER BY (SELECT count(*) FROM o l WHERE extension.version_compare(l.version, o.version) < 0) DESC,
			(SELECT count(*) FROM o l WHERE extension.version_compare(l.release, o.release) < 0) DESC
	LOOP
		tried := tried + 1;
		result := extension._solve(
			coalesce((SELECT jsonb_agg(jsonb_build_object('by', format('%s %s depends on', wanted, offer.version), 'alternatives', a))
				FROM jsonb_array_elements(offer.relations->'depends') a), '[]'),
			state || jsonb_build_object(wanted, state->wanted || jsonb_build_object('version', offer.version, 'relations', offer.relations)), 0);
		IF NOT (result->>'ok')::boolean THEN
			why := coalesce(why, result->>'why');
			CONTINUE;
		END IF;
		RETURN QUERY SELECT extension._carry_out(result->'chosen', target);
		IF mode = 'native' THEN
			EXECUTE format('ALTER EXTENSION %I UPDATE TO %L', wanted, offer.version);
		ELSE
			SELECT * INTO STRICT p FROM extension.package k WHERE k.name = wanted AND k.version = offer.release;
			PERFORM extension._apply(p, now_version, state->wanted->>'schema',
				extension._state() || jsonb_build_object(wanted, state->wanted));
		END IF;
		RETURN NEXT format('upgraded %s from %s to %s', wanted, now_version, offer.version);
		RETURN;
	END LOOP;
	IF tried > 0 THEN
		RAISE EXCEPTION 'cannot upgrade % %', wanted, now_version USING ERRCODE = 'object_not_in_prerequisite_state', DETAIL = why,
			HINT = 'SQL leaves what else is installed as it is; the command "rideau extension upgrade" may find a way.';
	ELSIF to_version IS NOT NULL THEN
		RAISE EXCEPTION 'no scripts lead from % % to %', wanted, now_version, to_version USING ERRCODE = 'undefined_object';
	END IF;
	RETURN NEXT format('%s %s is the newest', wanted, now_version);
END
$function$;

CREATE OR REPLACE FUNCTION extension._uninstall(wanted text) RETURNS SETOF text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $function$
DECLARE
	state jsonb; e extension.installed; problem text; before extension._snapshot; own bigint[]; o record; p extension.package; difference jsonb; setting jsonb;
	left_over integer[]; again integer[]; message text; detail text;
BEGIN
	PERFORM extension._check_name('uninstall', wanted, NULL);
	PERFORM pg_advisory_xact_lock(1380533317, 1163416576);
	state := extension._state();
	IF NOT state ? wanted OR wanted = 'postgresql' THEN
		RAISE EXCEPTION '% is not installed', wanted USING ERRCODE = 'undefined_object',
			HINT = extension._did_you_mean(wanted, ARRAY(SELECT k FROM jsonb_object_keys(state) k WHERE k <> 'postgresql')) || 'To see what is: SELECT * FROM extension.installed()';
	END IF;
	problem := extension._judge(state - wanted);
	IF problem IS NOT NULL AND extension._judge(state) IS NULL THEN
		RAISE EXCEPTION 'cannot uninstall %', wanted USING ERRCODE = 'dependent_objects_still_exist', DETAIL = problem;
	END IF;
	SELECT * INTO e FROM extension.installed i WHERE i.name = wanted;
	IF state->wanted->>'mode' <> 'module' THEN
		EXECUTE format('DROP EXTENSION %I RESTRICT', wanted);
	ELSE
		own := extension._own(wanted);
		before := extension._capture();
		IF e.uninstall IS NOT NULL THEN
			SELECT * INTO p FROM extension.package k WHERE k.name = wanted AND k.extversion = e.version AND k.sha256 = e.sha256 AND k.uninstall = e.uninstall;
			IF NOT FOUND THEN
				RAISE EXCEPTION 'the package that has the uninstall.sql of % % was not uploaded', wanted, e.version USING ERRCODE = 'feature_not_supported',
					HINT = 'The command "rideau extension uninstall" can do without it.';
			END IF;
			PERFORM extension._run(p, e.version, '', e.schema, state);
		END IF;
		-- Last made, first dropped; what cannot go yet is tried again. A schema that
		-- was made for it stays if somebody else has put something into it.
		left_over := ARRAY(SELECT x.seq FROM extension.object x WHERE x.name = wanted ORDER BY x.type = 'schema', x.seq DESC);
		LOOP
			again := '{}';
			FOR o IN SELECT x.* FROM unnest(left_over) WITH ORDINALITY u(seq, i) JOIN extension.object x ON x.name = wanted AND x.seq = u.seq ORDER BY u.i LOOP
				CONTINUE WHEN (SELECT a.objid IS NULL FROM extension._address(o.type, o.object_names, o.object_args) a);
				IF extension._drop_command(o.type, o.object_names, o.object_args, o.identity) IS NULL THEN
					RAISE EXCEPTION 'cannot drop % % in SQL', o.type, o.identity USING ERRCODE = 'feature_not_supported', HINT = 'The command "rideau extension uninstall" can.';
				END IF;
				BEGIN
					EXECUTE extension._drop_command(o.type, o.object_names, o.object_args, o.identity);
				EXCEPTION WHEN dependent_objects_still_exist THEN
					GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL;
					again := again || o.seq;
				END;
			END LOOP;
			EXIT WHEN cardinality(again) = 0 OR again = left_over;
			left_over := again;
		END LOOP;
		IF EXISTS (SELECT FROM extension.object x WHERE x.name = wanted AND x.seq = ANY (again) AND NOT (x.type = 'schema' AND x.object_names[1] = e.schema)) THEN
			RAISE EXCEPTION 'cannot uninstall %: %', wanted, message USING ERRCODE = 'dependent_objects_still_exist', DETAIL = detail,
				HINT = 'Drop what depends on it first. Objects that need each other can be dropped by the command "rideau extension uninstall".';
		ELSIF cardinality(again) > 0 THEN
			RAISE NOTICE 'schema % was left, because it is not empty', quote_ident(e.schema);
		END IF;
		SELECT coalesce(jsonb_agg(jsonb_build_object('what', d.what, 'classid', d.classid::bigint, 'objid', d.objid::bigint, 'parts', d.parts)), '[]')
		INTO difference FROM extension._difference(before) d WHERE d.what = 'dropped' OR e.uninstall IS NOT NULL AND d.what = 'changed';
		problem := extension._foreign(difference, own);
		IF problem IS NOT NULL THEN
			RAISE EXCEPTION 'the uninstall.sql of % changed what is not a part of it', wanted USING ERRCODE = 'object_not_in_prerequisite_state', DETAIL = problem;
		END IF;
		FOR setting IN SELECT jsonb_array_elements(e.settings) LOOP
			CONTINUE WHEN setting->>'Scope' = 'system';
			EXECUTE format('ALTER %s RESET %s',
				CASE setting->>'Scope' WHEN 'role' THEN format('ROLE %I', setting->>'Role') ELSE format('DATABASE %I', current_database()) END,
				(SELECT string_agg(quote_ident(n), '.' ORDER BY i) FROM unnest(string_to_array(setting->>'Name', '.')) WITH ORDINALITY u(n, i)));
		END LOOP;
	END IF;
	DELETE FROM extension.object x WHERE x.name = wanted;
	DELETE FROM extension.installed i WHERE i.name = wanted;
	RETURN NEXT format('uninstalled %s %s', wanted, state->wanted->>'version');
END
$function$;

-- _restore_path undoes what a script's SET search_path, without LOCAL, did to the
-- session.
CREATE OR REPLACE FUNCTION extension._restore_path(path text) RETURNS void
LANGUAGE plpgsql AS $function$
BEGIN
	IF NOT pg_catalog.texteq(pg_catalog.current_setting('search_path'), path) THEN
		PERFORM pg_catalog.set_config('search_path', path, false);
	END IF;
END
$function$;

CREATE OR REPLACE FUNCTION extension.install(name text, version text DEFAULT NULL, schema text DEFAULT NULL) RETURNS SETOF text
LANGUAGE plpgsql AS $function$
DECLARE
	path pg_catalog.text := pg_catalog.current_setting('search_path');
	state pg_catalog.text; message pg_catalog.text; detail pg_catalog.text; hint pg_catalog.text; context pg_catalog.text;
BEGIN
	RETURN QUERY SELECT extension._install(name, version, coalesce(schema, pg_catalog.current_schema()::pg_catalog.text));
	PERFORM extension._restore_path(path);
$again$
END
$function$;
COMMENT ON FUNCTION extension.install(text, text, text) IS 'installs an extension with all that it depends on';

CREATE OR REPLACE FUNCTION extension.upgrade(name text, version text DEFAULT NULL) RETURNS SETOF text
LANGUAGE plpgsql AS $function$
DECLARE
	path pg_catalog.text := pg_catalog.current_setting('search_path');
	state pg_catalog.text; message pg_catalog.text; detail pg_catalog.text; hint pg_catalog.text; context pg_catalog.text;
BEGIN
	RETURN QUERY SELECT extension._upgrade(name, version, pg_catalog.current_schema()::pg_catalog.text);
	PERFORM extension._restore_path(path);
$again$
END
$function$;
COMMENT ON FUNCTION extension.upgrade(text, text) IS 'upgrades an extension, to the newest version if none is named';

CREATE OR REPLACE FUNCTION extension.uninstall(name text) RETURNS SETOF text
LANGUAGE plpgsql AS $function$
DECLARE
	path pg_catalog.text := pg_catalog.current_setting('search_path');
	state pg_catalog.text; message pg_catalog.text; detail pg_catalog.text; hint pg_catalog.text; context pg_catalog.text;
BEGIN
	RETURN QUERY SELECT extension._uninstall(name);
	PERFORM extension._restore_path(path);
$again$
END
$function$;
COMMENT ON FUNCTION extension.uninstall(text) IS 'uninstalls an extension, if nothing depends on it';

CREATE OR REPLACE FUNCTION extension.available() RETURNS TABLE (name text, version text, installed text, source text, comment text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $function$
	SELECT p.name, p.extversion, extension._state()->p.name->>'version', CASE p.signed_by WHEN '' THEN 'package' ELSE 'package signed by ' || p.signed_by END, p.comment
	FROM extension.package p
	UNION ALL
	SELECT a.name::text, a.default_version, (SELECT e.extversion FROM pg_extension e WHERE e.extname = a.name), 'server', a.comment FROM pg_available_extensions() a
	ORDER BY 1, 2
$function$;
COMMENT ON FUNCTION extension.available() IS 'packages that were uploaded, and extensions that the server has files of';

CREATE OR REPLACE FUNCTION extension.installed() RETURNS TABLE (name text, version text, mode text, schema text, objects bigint)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $function$
	SELECT s.key, s.value->>'version', s.value->>'mode', s.value->>'schema',
		CASE s.value->>'mode' WHEN 'module' THEN (SELECT count(*) FROM extension.object o WHERE o.name = s.key)
			ELSE (SELECT count(*) FROM pg_depend d JOIN pg_extension e ON d.refclassid = 3079 AND d.refobjid = e.oid WHERE e.extname::text = s.key AND d.deptype = 'e') END
	FROM jsonb_each(extension._state()) s WHERE s.key <> 'postgresql' ORDER BY 1
$function$;
COMMENT ON FUNCTION extension.installed() IS 'extensions and modules that are in this database';

REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA extension FROM PUBLIC;
GRANT EXECUTE ON FUNCTION extension.version_compare(text, text), extension._state(), extension.available(), extension.installed() TO PUBLIC;
-- Whoever was let to install before must be able to call what is new.
DO $do$
DECLARE
	r record;
BEGIN
	FOR r IN SELECT p.oid::regprocedure AS f, g.grantee FROM pg_proc p, pg_proc i, aclexplode(i.proacl) g
		WHERE p.pronamespace = 'extension'::regnamespace AND p.proname LIKE '\_%' AND i.oid = 'extension.install(text,text,text)'::regprocedure
			AND g.privilege_type = 'EXECUTE' AND g.grantee <> i.proowner AND NOT has_function_privilege(g.grantee, p.oid, 'EXECUTE')
	LOOP
		EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %s', r.f, CASE r.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(r.grantee)) END);
	END LOOP;
END
$do$;
