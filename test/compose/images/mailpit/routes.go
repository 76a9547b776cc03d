package main

import (
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
)

func routes(box *mailbox) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /readyz", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("GET /api/v1/messages", func(w http.ResponseWriter, r *http.Request) {
		all := box.find(func(message) bool { return true })
		list(w, r, all, len(all))
	})
	mux.HandleFunc("GET /api/v1/search", func(w http.ResponseWriter, r *http.Request) {
		id, ok := strings.CutPrefix(r.URL.Query().Get("query"), "message-id:")
		if !ok {
			http.Error(w, "only message-id:… can be searched for", http.StatusBadRequest)
			return
		}
		id = strings.ToLower(strings.Trim(id, `"`))
		total := len(box.find(func(message) bool { return true }))
		list(w, r, box.find(func(m message) bool { return strings.Contains(strings.ToLower(m.MessageID), id) }), total)
	})
	return mux
}

// list answers with a page of found: ?start= and ?limit=, 50 unless told.
func list(w http.ResponseWriter, r *http.Request, found []message, total int) {
	page := func(name string, otherwise int) int {
		n, err := strconv.Atoi(r.URL.Query().Get(name))
		if err != nil || n < 0 {
			return otherwise
		}
		return n
	}
	start := min(page("start", 0), len(found))
	end := min(start+page("limit", 50), len(found))
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{ // the client is gone
		"total": total, "messages_count": len(found), "count": end - start, "start": start, "messages": found[start:end],
	})
}
