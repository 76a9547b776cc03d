package main

import (
	"regexp"
	"time"

	"github.com/spf13/cobra"

	"github.com/orderflow-dev/orderflow/internal/config"
	"github.com/orderflow-dev/orderflow/services/api"
)

func newKeys() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "keys",
		Short: "Add, list and revoke API keys",
		Long: `Looks after the keys that the api accepts. A key of role service acts for every user, one of role user for its own user
only. The database holds hashes, so a secret that is lost cannot be shown again: revoke it and create another.`,
	}
	cmd.AddCommand(newKeysCreate(), newKeysList(), newKeysRevoke())
	return cmd
}

// keyDoc is a key as JSON shows it.
type keyDoc struct {
	ID        string     `json:"id"`
	Name      string     `json:"name"`
	Role      string     `json:"role"`
	UserID    string     `json:"user_id,omitempty"`
	CreatedAt time.Time  `json:"created_at"`
	RevokedAt *time.Time `json:"revoked_at,omitempty"`
}

func newKeyDoc(k api.StoredKey) keyDoc {
	return keyDoc{ID: k.ID, Name: k.Name, Role: string(k.Role), UserID: k.UserID, CreatedAt: k.CreatedAt, RevokedAt: k.RevokedAt}
}

func newKeysCreate() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Add an API key and print its secret",
		Long:  `Adds an API key. Its secret is printed to stdout, now and never again.`,
		Example: `  KEY=$(orderflow keys create --name shop --role service --database-url postgres://owner@db/orderflow)
  orderflow keys create --name ada-laptop --role user --user-id ada`,
		Args: cobra.NoArgs,
		RunE: createKey,
	}
	cmd.Flags().String("name", "", "whose key it is, for you to find it again (required)")
	cmd.Flags().String("role", "", "service: acts for every user; user: for --user-id only (required)")
	cmd.Flags().String("user-id", "", "the user of a key of role user")
	addDatabaseFlag(cmd)
	addOutputFlag(cmd)
	return cmd
}

var userIDPattern = regexp.MustCompile(`^[A-Za-z0-9._:@-]{1,64}$`)

func keyFromFlags(cmd *cobra.Command) (api.Key, error) {
	key := api.Key{Name: stringFlag(cmd, "name"), Role: api.Role(stringFlag(cmd, "role")), UserID: stringFlag(cmd, "user-id"), Secret: api.NewSecret()}
	var check config.Check
	check.Required("name", key.Name)
	check.OneOf("role", string(key.Role), string(api.RoleService), string(api.RoleUser))
	switch {
	case key.Role == api.RoleUser && !userIDPattern.MatchString(key.UserID):
		check.Add("--user-id must name the key's user: 1 to 64 letters, digits or . _ : @ -, is %q", key.UserID)
	case key.Role == api.RoleService && key.UserID != "":
		check.Add("--user-id is for --role user: a key of role service acts for every user")
	}
	return key, invalid(cmd, check.Err())
}

func createKey(cmd *cobra.Command, _ []string) error {
	out, err := newOutput(cmd)
	if err != nil {
		return err
	}
	key, err := keyFromFlags(cmd)
	if err != nil {
		return err
	}
	pool, err := openOwner(cmd)
	if err != nil {
		return err
	}
	defer pool.Close()
	ctx := cmd.Context()
	keys, err := api.Keys(ctx, pool)
	if err != nil {
		return ownerError(err)
	}
	for _, k := range keys {
		if k.Name == key.Name && k.RevokedAt == nil {
			return fail(exitConflict, "choose another name, or revoke it: orderflow keys revoke "+k.ID+" --yes", "there is a key named %q", key.Name)
		}
	}
	if err := api.AddKey(ctx, pool, key); err != nil {
		return ownerError(err)
	}
	cmd.PrintErrln("this is the only time that the secret is shown")
	t := &table{}
	t.add(key.Secret)
	return one(out, struct {
		Name   string `json:"name"`
		Role   string `json:"role"`
		UserID string `json:"user_id,omitempty"`
		Secret string `json:"secret"`
	}{key.Name, string(key.Role), key.UserID, key.Secret}, t)
}

func newKeysList() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List API keys",
		Example: "  orderflow keys list --database-url postgres://owner@db/orderflow",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			out, err := newOutput(cmd)
			if err != nil {
				return err
			}
			pool, err := openOwner(cmd)
			if err != nil {
				return err
			}
			defer pool.Close()
			keys, err := api.Keys(cmd.Context(), pool)
			if err != nil {
				return ownerError(err)
			}
			return printKeys(out, keys)
		},
	}
	addDatabaseFlag(cmd)
	addOutputFlag(cmd)
	return cmd
}

func printKeys(out *output, keys []api.StoredKey) error {
	t := &table{header: []string{"ID", "NAME", "ROLE", "USER", "CREATED", "STATE"}, empty: "there are no keys"}
	var docs []keyDoc
	for _, k := range keys {
		state := cell{"active", "good"}
		if k.RevokedAt != nil {
			state = cell{"revoked " + localTime(*k.RevokedAt), "dim"}
		}
		t.add(k.ID, k.Name, string(k.Role), k.UserID, localTime(k.CreatedAt), state)
		docs = append(docs, newKeyDoc(k))
	}
	return list(out, docs, t)
}

func newKeysRevoke() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "revoke NAME|ID",
		Short: "End an API key",
		Long: `Ends an API key for good. The api stops accepting it within 2 seconds.

Without --yes it only prints what it would do.`,
		Example: "  orderflow keys revoke shop --yes",
		Args:    cobra.ExactArgs(1),
		RunE:    revokeKey,
	}
	addYesFlag(cmd)
	addDatabaseFlag(cmd)
	addOutputFlag(cmd)
	return cmd
}

func revokeKey(cmd *cobra.Command, args []string) error {
	out, err := newOutput(cmd)
	if err != nil {
		return err
	}
	pool, err := openOwner(cmd)
	if err != nil {
		return err
	}
	defer pool.Close()
	keys, err := api.Keys(cmd.Context(), pool)
	if err != nil {
		return ownerError(err)
	}
	key, err := findKey(keys, args[0])
	if err != nil {
		return err
	}
	if err := printKeys(out, []api.StoredKey{key}); err != nil {
		return err
	}
	if yes, _ := cmd.Flags().GetBool("yes"); !yes {
		cmd.PrintErrln("this key would be revoked; --yes does it")
		return nil
	}
	revoked, err := api.RevokeKey(cmd.Context(), pool, key.ID)
	if err != nil {
		return ownerError(err)
	}
	if !revoked {
		return fail(exitConflict, "", "key %s had been revoked by somebody else", key.ID)
	}
	cmd.PrintErrln("the key is revoked")
	return nil
}

// findKey returns the active key of a name or id.
func findKey(keys []api.StoredKey, nameOrID string) (api.StoredKey, error) {
	var found []api.StoredKey
	revoked := false
	for _, k := range keys {
		switch {
		case k.ID != nameOrID && k.Name != nameOrID:
		case k.RevokedAt != nil:
			revoked = true
		default:
			found = append(found, k)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return api.StoredKey{}, fail(exitConflict, "name it by its id: `orderflow keys list` shows them", "%d keys are named %q", len(found), nameOrID)
	case revoked:
		return api.StoredKey{}, fail(exitConflict, "", "key %q is revoked already", nameOrID)
	}
	return api.StoredKey{}, fail(exitNotFound, "`orderflow keys list` shows them", "there is no key %q", nameOrID)
}
