package extension

import (
	"testing"

	"rideau/internal/pgtest"
)

// A copy of a server elsewhere looks into the store of the one that it is of.
func TestForeignSearchPaths(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, pgtest.Options{Major: 18})
	s := connected(t, Config{Shelves: shelves(rnd(t, server))}, server.Conninfo(""))
	do(t, s, byPath("rnd=1.0"))
	for name, value := range map[string]string{controlPath: "$system:/old/data/rideau", libraryPath: "$libdir:/old/data/rideau/lib:/more"} {
		server.Exec("ALTER SYSTEM SET " + name + " = '" + value + "'")
		server.Reload()
		server.WaitQuery(value, "SHOW "+name)
	}
	x, err := s.Doctor(t.Context(), DoctorOptions{})
	if err != nil {
		t.Fatal(err)
	}
	own := s.primary.store(false)
	if !finds(x, Note, `"extension_control_path" = '$system:`+own+"'", "/old/data/rideau", "not in its own data directory") ||
		!finds(x, Note, `"dynamic_library_path" = '$libdir:/more:`+own+"/lib'", "/old/data/rideau/lib", "not in its own data directory") {
		t.Errorf("found %+v", x.Findings)
	}
	do(t, s, install("rnd")) // adds the own
	server.Exec("ALTER SYSTEM SET extension_control_path = '$system:" + own + "'")
	server.Exec("ALTER SYSTEM SET dynamic_library_path = '$libdir:" + own + "/lib'")
	server.Reload()
	server.WaitQuery("$libdir:"+own+"/lib", "SHOW dynamic_library_path")
	server.WaitQuery("$system:"+own, "SHOW extension_control_path")
	if x, err = s.Doctor(t.Context(), DoctorOptions{}); err != nil || !x.Healthy() || finds(x, Note, "", "data directory") {
		t.Errorf("found %+v, %v", x, err)
	}
}
