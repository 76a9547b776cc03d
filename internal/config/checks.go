package config

import (
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Required notes a setting that is empty.
func (c *Check) Required(flag, value string) {
	if value == "" {
		c.Add("--%s (or %s) is required", flag, EnvName(flag))
	}
}

// URL notes a value that is not an absolute URL with one of the schemes. The value itself is not repeated: it may hold a
// password.
func (c *Check) URL(flag, value string, schemes ...string) {
	if value == "" {
		c.Required(flag, value)
		return
	}
	u, err := url.Parse(value)
	if err != nil || u.Host == "" || !slices.Contains(schemes, u.Scheme) {
		c.Add("--%s must be a URL that begins with %s://", flag, strings.Join(schemes, ":// or "))
	}
}

// Address notes a value that is not host:port or :port.
func (c *Check) Address(flag, value string) {
	_, port, err := net.SplitHostPort(value)
	if err != nil {
		c.Add("--%s must be host:port, is %q", flag, value)
		return
	}
	if number, err := strconv.Atoi(port); err != nil || number < 0 || number > 65535 {
		c.Add("--%s must have a port from 0 to 65535, has %q", flag, port)
	}
}

// Addresses notes an empty list, and each entry that is not host:port.
func (c *Check) Addresses(flag string, values []string) {
	if len(values) == 0 {
		c.Required(flag, "")
	}
	for _, value := range values {
		c.Address(flag, value)
	}
}

// Between notes a number outside [low, high].
func (c *Check) Between(flag string, value, low, high int) {
	if value < low || value > high {
		c.Add("--%s must be from %d to %d, is %d", flag, low, high, value)
	}
}

// Positive notes a duration of zero or less.
func (c *Check) Positive(flag string, value time.Duration) {
	if value <= 0 {
		c.Add("--%s must be a positive duration such as 5s, is %v", flag, value)
	}
}

// OneOf notes a value that is not among the choices.
func (c *Check) OneOf(flag, value string, choices ...string) {
	if !slices.Contains(choices, value) {
		c.Add("--%s must be one of %s, is %q", flag, strings.Join(choices, ", "), value)
	}
}
