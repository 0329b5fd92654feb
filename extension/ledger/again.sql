-- The end of functions that people call: the error of a function of ours is
-- raised again from here, where the context is one line. Ours, which is long, is
-- shown with client_min_messages = debug. An empty detail or hint would be shown
-- as one.
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT, context = PG_EXCEPTION_CONTEXT;
	RAISE DEBUG '%', context;
	IF pg_catalog.texteq(detail, '') AND pg_catalog.texteq(hint, '') THEN
		RAISE EXCEPTION '%', message USING ERRCODE = state;
	ELSIF pg_catalog.texteq(detail, '') THEN
		RAISE EXCEPTION '%', message USING ERRCODE = state, HINT = hint;
	ELSIF pg_catalog.texteq(hint, '') THEN
		RAISE EXCEPTION '%', message USING ERRCODE = state, DETAIL = detail;
	END IF;
	RAISE EXCEPTION '%', message USING ERRCODE = state, DETAIL = detail, HINT = hint;
