-- What there is to know about the objects of classes $1 and oids $2: place in
-- the arrays, type, names, args, identity, owner, extension, grantees, md5 of definition.
-- The search_path is pg_catalog, pg_temp.
SELECT a.n::int4, i.type, coalesce(p.object_names, '{}'), coalesce(p.object_args, '{}'), coalesce(i.identity, ''),
	CASE a.classid
		WHEN 1259 THEN (SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = a.objid)
		WHEN 1255 THEN (SELECT pg_get_userbyid(proowner) FROM pg_proc WHERE oid = a.objid)
		WHEN 1247 THEN (SELECT pg_get_userbyid(typowner) FROM pg_type WHERE oid = a.objid)
		WHEN 3456 THEN (SELECT pg_get_userbyid(collowner) FROM pg_collation WHERE oid = a.objid)
		WHEN 2607 THEN (SELECT pg_get_userbyid(conowner) FROM pg_conversion WHERE oid = a.objid)
		WHEN 2612 THEN (SELECT pg_get_userbyid(lanowner) FROM pg_language WHERE oid = a.objid)
		WHEN 2613 THEN (SELECT pg_get_userbyid(lomowner) FROM pg_largeobject_metadata WHERE oid = a.objid)
		WHEN 2617 THEN (SELECT pg_get_userbyid(oprowner) FROM pg_operator WHERE oid = a.objid)
		WHEN 2616 THEN (SELECT pg_get_userbyid(opcowner) FROM pg_opclass WHERE oid = a.objid)
		WHEN 2753 THEN (SELECT pg_get_userbyid(opfowner) FROM pg_opfamily WHERE oid = a.objid)
		WHEN 2615 THEN (SELECT pg_get_userbyid(nspowner) FROM pg_namespace WHERE oid = a.objid)
		WHEN 3381 THEN (SELECT pg_get_userbyid(stxowner) FROM pg_statistic_ext WHERE oid = a.objid)
		WHEN 3600 THEN (SELECT pg_get_userbyid(dictowner) FROM pg_ts_dict WHERE oid = a.objid)
		WHEN 3602 THEN (SELECT pg_get_userbyid(cfgowner) FROM pg_ts_config WHERE oid = a.objid)
		WHEN 2328 THEN (SELECT pg_get_userbyid(fdwowner) FROM pg_foreign_data_wrapper WHERE oid = a.objid)
		WHEN 1417 THEN (SELECT pg_get_userbyid(srvowner) FROM pg_foreign_server WHERE oid = a.objid)
		WHEN 826 THEN (SELECT pg_get_userbyid(defaclrole) FROM pg_default_acl WHERE oid = a.objid)
		WHEN 3079 THEN (SELECT pg_get_userbyid(extowner) FROM pg_extension WHERE oid = a.objid)
		WHEN 3466 THEN (SELECT pg_get_userbyid(evtowner) FROM pg_event_trigger WHERE oid = a.objid)
		WHEN 6104 THEN (SELECT pg_get_userbyid(pubowner) FROM pg_publication WHERE oid = a.objid)
		WHEN 1262 THEN (SELECT pg_get_userbyid(datdba) FROM pg_database WHERE oid = a.objid)
		WHEN 1213 THEN (SELECT pg_get_userbyid(spcowner) FROM pg_tablespace WHERE oid = a.objid)
	END,
	(SELECT e.extname FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
	 WHERE d.classid = a.classid AND d.objid = a.objid AND d.objsubid = 0 AND d.refclassid = 3079 AND d.deptype = 'e'),
	CASE a.classid WHEN 826 THEN (
		SELECT array_agg(DISTINCT CASE g.grantee WHEN 0 THEN '' ELSE pg_get_userbyid(g.grantee)::text END)
		FROM pg_default_acl d, aclexplode(d.defaclacl) g WHERE d.oid = a.objid)
	END,
	md5(CASE
		WHEN a.classid = 1255 AND i.type <> 'aggregate' THEN pg_get_functiondef(a.objid)
		WHEN a.classid = 1255 THEN (
			SELECT concat_ws(E'\n', pg_get_function_result(a.objid), f.proparallel, g.aggkind, g.aggnumdirectargs, g.aggtransfn::oid::regprocedure,
				g.aggfinalfn::oid::regprocedure, g.aggcombinefn::oid::regprocedure, g.aggserialfn::oid::regprocedure, g.aggdeserialfn::oid::regprocedure,
				g.aggmtransfn::oid::regprocedure, g.aggminvtransfn::oid::regprocedure, g.aggmfinalfn::oid::regprocedure,
				g.aggfinalextra, g.aggmfinalextra, g.aggfinalmodify, g.aggmfinalmodify, g.aggsortop::regoperator,
				g.aggtranstype::regtype, g.aggtransspace, g.aggmtranstype::regtype, g.aggmtransspace,
				'initial ' || g.agginitval, 'moving ' || g.aggminitval)
			FROM pg_aggregate g JOIN pg_proc f ON f.oid = g.aggfnoid WHERE g.aggfnoid = a.objid)
		-- Without aliases inside: a view that was dumped and restored has more of them.
		WHEN i.type IN ('view', 'materialized view') THEN
			regexp_replace(pg_get_viewdef(a.objid), ' AS ("([^"]|"")+"|[[:alnum:]_$]+)', '', 'g') ||
			(SELECT coalesce(c.reloptions::text, '') FROM pg_class c WHERE c.oid = a.objid) ||
			ARRAY(SELECT t.attname FROM pg_attribute t WHERE t.attrelid = a.objid AND t.attnum > 0 ORDER BY t.attnum)::text
		WHEN i.type = 'index' THEN pg_get_indexdef(a.objid)
		WHEN i.type = 'sequence' THEN (
			SELECT concat_ws(' ', s.seqtypid::regtype, s.seqstart, s.seqincrement, s.seqmax, s.seqmin, s.seqcache, s.seqcycle)
			FROM pg_sequence s WHERE s.seqrelid = a.objid)
		WHEN a.classid = 1259 OR i.type = 'type' AND EXISTS (SELECT FROM pg_type t WHERE t.oid = a.objid AND t.typtype = 'c') THEN (
			SELECT concat_ws(E'\n', c.relpersistence, c.relrowsecurity, c.relforcerowsecurity, c.reloptions, c.reloftype::regtype,
				pg_get_partkeydef(c.oid), pg_get_expr(c.relpartbound, c.oid),
				(SELECT 'foreign ' || quote_ident(s.srvname) || coalesce(t.ftoptions::text, '')
				 FROM pg_foreign_table t JOIN pg_foreign_server s ON s.oid = t.ftserver WHERE t.ftrelid = c.oid),
				(SELECT string_agg(h.inhparent::regclass::text, ',' ORDER BY h.inhseqno) FROM pg_inherits h WHERE h.inhrelid = c.oid),
				(SELECT string_agg(concat_ws(' ', quote_ident(t.attname), format_type(t.atttypid, t.atttypmod), t.attnotnull, t.attidentity, t.attgenerated,
					(SELECT quote_ident(n.nspname) || '.' || quote_ident(l.collname) FROM pg_collation l JOIN pg_namespace n ON n.oid = l.collnamespace
					 WHERE l.oid = t.attcollation AND t.attcollation <> 100),
					t.attoptions, t.attfdwoptions, pg_get_expr(d.adbin, d.adrelid)), E'\n' ORDER BY t.attnum)
				 FROM pg_attribute t LEFT JOIN pg_attrdef d ON d.adrelid = t.attrelid AND d.adnum = t.attnum
				 WHERE t.attrelid = c.oid AND t.attnum > 0 AND NOT t.attisdropped),
				(SELECT string_agg(quote_ident(k.conname) || ' ' || pg_get_constraintdef(k.oid), E'\n' ORDER BY k.conname)
				 FROM pg_constraint k WHERE k.conrelid = c.oid AND k.contype IN ('c', 'f', 'p', 'u', 'x')))
			FROM pg_class c
			WHERE c.oid = CASE WHEN a.classid = 1259 THEN a.objid ELSE (SELECT t.typrelid FROM pg_type t WHERE t.oid = a.objid) END)
		WHEN i.type = 'type' THEN (
			SELECT concat_ws(E'\n', t.typtype, t.typcategory, t.typispreferred, t.typdelim,
				CASE WHEN t.typtype = 'd' THEN concat_ws(' ', format_type(t.typbasetype, t.typtypmod), t.typnotnull, t.typdefault,
					(SELECT quote_ident(n.nspname) || '.' || quote_ident(l.collname) FROM pg_collation l JOIN pg_namespace n ON n.oid = l.collnamespace WHERE l.oid = t.typcollation))
				     WHEN t.typtype = 'b' THEN concat_ws(' ', t.typlen, t.typbyval, t.typalign, t.typstorage, t.typinput::oid::regprocedure, t.typoutput::oid::regprocedure,
					t.typreceive::oid::regprocedure, t.typsend::oid::regprocedure, t.typmodin::oid::regprocedure, t.typmodout::oid::regprocedure,
					t.typanalyze::oid::regprocedure, t.typelem::regtype, t.typdefault) END,
				(SELECT string_agg(quote_ident(k.conname) || ' ' || pg_get_constraintdef(k.oid), E'\n' ORDER BY k.conname)
				 FROM pg_constraint k WHERE k.contypid = t.oid AND k.contype = 'c'),
				(SELECT string_agg(quote_literal(e.enumlabel), ',' ORDER BY e.enumsortorder) FROM pg_enum e WHERE e.enumtypid = t.oid),
				(SELECT concat_ws(' ', r.rngsubtype::regtype, r.rngcanonical::oid::regprocedure, r.rngsubdiff::oid::regprocedure,
					(SELECT quote_ident(n.nspname) || '.' || quote_ident(l.collname) FROM pg_collation l JOIN pg_namespace n ON n.oid = l.collnamespace WHERE l.oid = r.rngcollation),
					(SELECT quote_ident(n.nspname) || '.' || quote_ident(o.opcname) FROM pg_opclass o JOIN pg_namespace n ON n.oid = o.opcnamespace WHERE o.oid = r.rngsubopc))
				 FROM pg_range r WHERE r.rngtypid = t.oid))
			FROM pg_type t WHERE t.oid = a.objid)
		WHEN a.classid = 2606 THEN pg_get_constraintdef(a.objid)
		WHEN a.classid = 2604 THEN (SELECT pg_get_expr(d.adbin, d.adrelid) FROM pg_attrdef d WHERE d.oid = a.objid)
		WHEN a.classid = 2618 THEN pg_get_ruledef(a.objid)
		WHEN a.classid = 2620 THEN (SELECT pg_get_triggerdef(a.objid) || t.tgenabled::text FROM pg_trigger t WHERE t.oid = a.objid)
		WHEN a.classid = 3381 THEN pg_get_statisticsobjdef(a.objid)
		WHEN a.classid = 2605 THEN (SELECT concat_ws(' ', c.castfunc::regprocedure, c.castcontext, c.castmethod) FROM pg_cast c WHERE c.oid = a.objid)
		WHEN a.classid = 2617 THEN (
			SELECT concat_ws(' ', o.oprresult::regtype, o.oprcode::oid::regprocedure, o.oprcom::regoperator, o.oprnegate::regoperator,
				o.oprrest::oid::regprocedure, o.oprjoin::oid::regprocedure, o.oprcanmerge, o.oprcanhash)
			FROM pg_operator o WHERE o.oid = a.objid)
		WHEN a.classid = 2616 THEN (
			SELECT concat_ws(' ', o.opcintype::regtype, o.opcdefault, nullif(o.opckeytype, 0)::regtype, quote_ident(n.nspname) || '.' || quote_ident(f.opfname))
			FROM pg_opclass o JOIN pg_opfamily f ON f.oid = o.opcfamily JOIN pg_namespace n ON n.oid = f.opfnamespace WHERE o.oid = a.objid)
		WHEN a.classid = 2753 THEN concat_ws(E'\n',
			(SELECT string_agg(concat_ws(' ', o.amopstrategy, o.amoppurpose, o.amopopr::regoperator), E'\n' ORDER BY o.amopstrategy, o.amoppurpose, o.amopopr::regoperator::text)
			 FROM pg_amop o WHERE o.amopfamily = a.objid),
			(SELECT string_agg(concat_ws(' ', f.amprocnum, f.amproclefttype::regtype, f.amprocrighttype::regtype, f.amproc::oid::regprocedure), E'\n'
				ORDER BY f.amprocnum, f.amproclefttype::regtype::text, f.amprocrighttype::regtype::text)
			 FROM pg_amproc f WHERE f.amprocfamily = a.objid))
		WHEN a.classid = 2602 THEN (SELECT concat_ws(' ', o.amopopr::regoperator, o.amoppurpose) FROM pg_amop o WHERE o.oid = a.objid)
		WHEN a.classid = 2603 THEN (SELECT f.amproc::oid::regprocedure::text FROM pg_amproc f WHERE f.oid = a.objid)
		WHEN a.classid = 2601 THEN (SELECT concat_ws(' ', m.amhandler::oid::regprocedure, m.amtype) FROM pg_am m WHERE m.oid = a.objid)
		WHEN a.classid = 2612 THEN (
			SELECT concat_ws(' ', l.lanpltrusted, l.lanplcallfoid::regprocedure, l.laninline::regprocedure, l.lanvalidator::regprocedure)
			FROM pg_language l WHERE l.oid = a.objid)
		WHEN a.classid = 2607 THEN (
			SELECT concat_ws(' ', pg_encoding_to_char(c.conforencoding), pg_encoding_to_char(c.contoencoding), c.conproc::oid::regprocedure, c.condefault)
			FROM pg_conversion c WHERE c.oid = a.objid)
		WHEN a.classid = 3456 THEN (
			SELECT concat_ws(' ', c.collprovider, c.collisdeterministic, pg_encoding_to_char(c.collencoding), c.collcollate, c.collctype, to_jsonb(c)->>'colliculocale', to_jsonb(c)->>'colllocale')
			FROM pg_collation c WHERE c.oid = a.objid)
		WHEN a.classid = 3601 THEN (
			SELECT concat_ws(' ', p.prsstart::oid::regprocedure, p.prstoken::oid::regprocedure, p.prsend::oid::regprocedure, p.prsheadline::oid::regprocedure, p.prslextype::oid::regprocedure)
			FROM pg_ts_parser p WHERE p.oid = a.objid)
		WHEN a.classid = 3764 THEN (
			SELECT concat_ws(' ', t.tmplinit::oid::regprocedure, t.tmpllexize::oid::regprocedure) FROM pg_ts_template t WHERE t.oid = a.objid)
		WHEN a.classid = 3600 THEN (
			SELECT concat_ws(' ', quote_ident(n.nspname) || '.' || quote_ident(t.tmplname), d.dictinitoption)
			FROM pg_ts_dict d JOIN pg_ts_template t ON t.oid = d.dicttemplate JOIN pg_namespace n ON n.oid = t.tmplnamespace WHERE d.oid = a.objid)
		WHEN a.classid = 3602 THEN (
			SELECT concat_ws(E'\n', quote_ident(n.nspname) || '.' || quote_ident(p.prsname),
				(SELECT string_agg(concat_ws(' ', m.maptokentype, m.mapseqno, m.mapdict::regdictionary), E'\n' ORDER BY m.maptokentype, m.mapseqno)
				 FROM pg_ts_config_map m WHERE m.mapcfg = c.oid))
			FROM pg_ts_config c JOIN pg_ts_parser p ON p.oid = c.cfgparser JOIN pg_namespace n ON n.oid = p.prsnamespace WHERE c.oid = a.objid)
		WHEN a.classid = 2328 THEN (
			SELECT concat_ws(' ', nullif(f.fdwhandler, 0)::regprocedure, nullif(f.fdwvalidator, 0)::regprocedure, f.fdwoptions)
			FROM pg_foreign_data_wrapper f WHERE f.oid = a.objid)
		WHEN a.classid = 1417 THEN (
			SELECT concat_ws(' ', quote_ident(f.fdwname), s.srvtype, s.srvversion, s.srvoptions)
			FROM pg_foreign_server s JOIN pg_foreign_data_wrapper f ON f.oid = s.srvfdw WHERE s.oid = a.objid)
		WHEN a.classid = 3466 THEN (
			SELECT concat_ws(' ', e.evtevent, e.evtfoid::regprocedure, e.evtenabled, e.evttags) FROM pg_event_trigger e WHERE e.oid = a.objid)
		WHEN a.classid = 3256 THEN (
			SELECT concat_ws(E'\n', y.polcmd, y.polpermissive,
				(SELECT string_agg(coalesce(quote_ident(r.rolname), 'public'), ',' ORDER BY r.rolname) FROM unnest(y.polroles) u(id) LEFT JOIN pg_roles r ON r.oid = u.id),
				pg_get_expr(y.polqual, y.polrelid), pg_get_expr(y.polwithcheck, y.polrelid))
			FROM pg_policy y WHERE y.oid = a.objid)
		WHEN a.classid = 6104 THEN (SELECT (to_jsonb(b) - '{oid,pubname,pubowner}'::text[])::text FROM pg_publication b WHERE b.oid = a.objid)
		WHEN a.classid = 3576 THEN (
			SELECT concat_ws(' ', nullif(t.trffromsql, 0)::oid::regprocedure, nullif(t.trftosql, 0)::oid::regprocedure) FROM pg_transform t WHERE t.oid = a.objid)
		WHEN a.classid = 826 THEN (
			SELECT string_agg(g::text, ',' ORDER BY g::text) FROM pg_default_acl d, unnest(d.defaclacl) g WHERE d.oid = a.objid)
	END)
FROM unnest($1::oid[], $2::oid[]) WITH ORDINALITY AS a(classid, objid, n),
	LATERAL pg_identify_object(a.classid, a.objid, 0) i,
	LATERAL pg_identify_object_as_address(a.classid, a.objid, 0) p
WHERE i.type IS NOT NULL
