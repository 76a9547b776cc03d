package dev

import (
	"maps"
	"slices"
	"strings"
)

// hints prints where everything is and what to try. Every line works as pasted into another shell.
func (s *system) hints() {
	r := s.ready
	command := s.opts.Command
	if s.opts.DataDir != DefaultDataDir() {
		command = "ORDERFLOW_DATA_DIR=" + shellQuote(s.opts.DataDir) + " " + command
	}
	s.report.line("  api       %s   reference: %s/docs", r.API, r.API)
	s.report.line("  postgres  %s", r.Postgres)
	s.report.line("  kafka     %s", r.Kafka)
	s.report.line("  sandbox   %s/v1/mail   %s/v1/journal", r.Sandbox, r.Sandbox)
	for i, name := range slices.Sorted(maps.Keys(r.Ops)) {
		label := ""
		if i == 0 {
			label = "metrics"
		}
		s.report.line("  %-8s  %s/metrics   %s; also /healthz and /readyz", label, r.Ops[name], name)
	}
	s.report.line("  addresses for scripts: %s", readyFile(s.opts.DataDir))
	s.report.line("\nTry:")
	s.report.line("  %s orders create --random --wait", command)
	s.report.line("  %s orders timeline ID", command)
	s.report.line("  %s groups list", command)
	s.report.line("  %s load --rate 50 --duration 10s --declines 0.05", command)
	s.report.line("  %s", curl(r))
	s.report.line("\nCtrl-C stops everything and keeps the data.")
}

func curl(r Ready) string {
	return "curl -i " + r.API + "/v1/orders -H 'Authorization: Bearer " + r.APIKey + "' " +
		`-H 'Content-Type: application/json' -H "Idempotency-Key: $(date +%s%N)" ` +
		`-d '{"user_id":"ada","currency":"EUR","email":"ada@example.com","payment_method":"pm_ok","items":[{"sku":"sku-mug","quantity":2}]}'`
}

// shellQuote quotes s for a POSIX shell when that is needed.
func shellQuote(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-:=@%+,", r)
	}
	if s != "" && strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
