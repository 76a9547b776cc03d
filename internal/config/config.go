// Package config fills flags from the environment and collects what is wrong with a configuration, so that one start
// reports every mistake.
//
// The flag --database-url is set by $ORDERFLOW_DATABASE_URL, or by the content of the file that
// $ORDERFLOW_DATABASE_URL_FILE names, as secrets are mounted into containers. A flag on the command line wins. An empty
// variable counts as not set.
package config

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/pflag"
)

// ErrInvalid is returned for a configuration that cannot work. Its text lists every mistake, a line each.
var ErrInvalid = errors.New("invalid configuration")

const (
	prefix     = "ORDERFLOW_"
	fileSuffix = "_FILE"
	// maxFile bounds what is read for one flag: a path to the wrong file must not fill the memory.
	maxFile = 64 << 10
)

// EnvName returns the variable that sets a flag: "database-url" is ORDERFLOW_DATABASE_URL.
func EnvName(flag string) string {
	return prefix + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// Bind sets the flags that the command line left alone from the environment, which lookup reads ([os.LookupEnv]). The error
// wraps [ErrInvalid]; it never repeats what a file holds.
func Bind(flags *pflag.FlagSet, lookup func(name string) (string, bool)) error {
	var check Check
	flags.VisitAll(func(flag *pflag.Flag) {
		if flag.Changed || flag.Name == "help" {
			return
		}
		name := EnvName(flag.Name)
		value, _ := lookup(name)
		file, _ := lookup(name + fileSuffix)
		switch {
		case value != "" && file != "":
			check.Add("%s and %s are both set: keep one", name, name+fileSuffix)
		case value != "":
			if err := flags.Set(flag.Name, value); err != nil {
				check.Add("%s: %v", name, err)
			}
			note(flag)
		case file != "":
			check.setFromFile(flags, flag, name+fileSuffix, file)
			note(flag)
		}
	})
	return check.Err()
}

// fromEnvironment is the annotation of flags that [Bind] has set.
const fromEnvironment = "orderflow_from_environment"

func note(flag *pflag.Flag) {
	if flag.Annotations == nil {
		flag.Annotations = map[string][]string{}
	}
	flag.Annotations[fromEnvironment] = nil
}

// OnCommandLine reports whether the command line itself set the flag: what the environment says, for many commands, is no
// contradiction to what a command line says for one.
func OnCommandLine(flag *pflag.Flag) bool {
	_, noted := flag.Annotations[fromEnvironment]
	return flag.Changed && !noted
}

func (c *Check) setFromFile(flags *pflag.FlagSet, flag *pflag.Flag, name, path string) {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		c.Add("%s: %v", name, err)
		return
	case !info.Mode().IsRegular() || info.Size() > maxFile:
		c.Add("%s: %s must be a regular file of at most %d bytes", name, path, maxFile)
		return
	}
	content, err := os.ReadFile(path)
	if err != nil {
		c.Add("%s: %v", name, err)
		return
	}
	// Editors and `echo` end a file with a line break that is not part of the secret.
	if flags.Set(flag.Name, strings.TrimRight(string(content), "\r\n")) != nil {
		c.Add("%s: what %s holds is not a valid value (%s) of --%s", name, path, flag.Value.Type(), flag.Name)
	}
}

// Unknown returns the names of variables in environ ([os.Environ]) that look like ours and set no flag of any of the sets:
// most likely a typing error, which would otherwise go unnoticed.
func Unknown(environ []string, sets ...*pflag.FlagSet) []string {
	known := map[string]bool{}
	for _, flags := range sets {
		flags.VisitAll(func(flag *pflag.Flag) {
			known[EnvName(flag.Name)] = true
			known[EnvName(flag.Name)+fileSuffix] = true
		})
	}
	var unknown []string
	for _, entry := range environ {
		name, _, _ := strings.Cut(entry, "=")
		// Variables of the tests are no flags.
		if strings.HasPrefix(name, prefix) && !strings.HasPrefix(name, prefix+"TEST_") && !known[name] {
			unknown = append(unknown, name)
		}
	}
	slices.Sort(unknown)
	return slices.Compact(unknown)
}

// Check collects mistakes. Its zero value is ready to use. The methods name a setting by its flag.
type Check struct{ mistakes []string }

// Add notes one mistake. It must not hold a secret.
func (c *Check) Add(format string, args ...any) {
	c.mistakes = append(c.mistakes, fmt.Sprintf(format, args...))
}

// Err returns nil, or an error that lists every mistake and wraps [ErrInvalid].
func (c *Check) Err() error {
	switch len(c.mistakes) {
	case 0:
		return nil
	case 1:
		return fmt.Errorf("%w: %s", ErrInvalid, c.mistakes[0])
	}
	return fmt.Errorf("%w: %d mistakes:\n  - %s", ErrInvalid, len(c.mistakes), strings.Join(c.mistakes, "\n  - "))
}
