package email

import (
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// What goes wrong with a look-up is logged and kept with the email. The address may hold the provider's key.
func TestErrorsOfALookUpKeepItsSecrets(t *testing.T) {
	t.Parallel()
	const secret = "s3cr3t"
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := ln.Addr().String()
	_ = ln.Close()
	cut := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }))
	t.Cleanup(cut.Close)
	elsewhere := httptest.NewServer(http.RedirectHandler("http://"+nobody+"/moved?key="+secret, http.StatusFound))
	t.Cleanup(elsewhere.Close)
	refuses := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(refuses.Close)
	for _, tc := range []struct{ name, address, says string }{
		{"nobody listens", "http://" + nobody + "/v1/mail?key=" + secret, nobody + "/v1/mail"},
		{"a password in the address", "http://me:" + secret + "@" + nobody + "/v1/mail", nobody + "/v1/mail"},
		{"the connection is cut", cut.URL + "/v1/mail?key=" + secret + "&q={message_id}", "EOF"},
		{"a redirect to nobody", elsewhere.URL + "?key=" + secret, nobody + "/moved"},
		{"it refuses", refuses.URL + "?key=" + secret, "404"},
		{"another scheme", "ftp://" + nobody + "/?key=" + secret, "ftp"},
		{"no URL", "provider?key=" + secret, "not a URL"},
		{"a URL that cannot be read", "http://x:y/?key=" + secret, "not a URL"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			p := &provider{access: access{lookupURL: tc.address}, http: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}}
			_, err := p.has(t.Context(), "id@example")
			if err == nil || strings.Contains(err.Error(), secret) || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("has = %v; want an error with %q and without the secret", err, tc.says)
			}
		})
	}
}
