package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/orderflow-dev/orderflow/internal/order"
)

func newProducts() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "products",
		Short: "Fill the catalog",
	}
	cmd.AddCommand(newProductsImport())
	return cmd
}

func newProductsImport() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "import FILE.csv|FILE.jsonl",
		Short: "Add and change products and their stock",
		Long: `Adds the products of a file to the catalog, and changes those that are there. A CSV file begins with a line that names its
columns, in any order; a JSON lines file has an object per line. Both have the same fields, all required:

  sku         1 to 64 letters, digits or . _ -
  name        what users see
  unit_price  price in minor units of the currency: 1890 is 18.90 EUR, and 1890 JPY
  currency    ISO 4217 code
  stock       units that can be ordered from now on, beside those that orders hold already

Nothing is stored when one line is wrong. Products that the file does not name stay as they are, and so do the prices of
orders that were placed.`,
		Example: `  orderflow products import catalog.csv --database-url postgres://owner@db/orderflow
  orderflow products import --sample --database-url postgres://owner@db/orderflow`,
		Args: cobra.MaximumNArgs(1),
		RunE: importProducts,
	}
	cmd.Flags().Bool("sample", false, "add the sample catalog instead of a file; products that exist stay as they are")
	addDatabaseFlag(cmd)
	return cmd
}

func importProducts(cmd *cobra.Command, args []string) error {
	sample, _ := cmd.Flags().GetBool("sample")
	if sample == (len(args) == 1) {
		return usage("usage: "+cmd.UseLine(), "name a file or say --sample")
	}
	var offers []order.Offer
	if !sample {
		file, err := os.Open(args[0])
		if err != nil {
			return usage("", "%w", err)
		}
		defer file.Close()
		if offers, err = readOffers(args[0], file); err != nil {
			return usage("nothing was stored; `orderflow products import --help` shows the format", "%w", err)
		}
	}
	pool, err := openOwner(cmd)
	if err != nil {
		return err
	}
	defer pool.Close()
	if sample {
		if err := order.SeedCatalog(cmd.Context(), pool); err != nil {
			return ownerError(err)
		}
		cmd.PrintErrf("the %d products of the sample catalog are there\n", len(order.Catalog()))
		return nil
	}
	if err := order.PutProducts(cmd.Context(), pool, offers); err != nil {
		return ownerError(err)
	}
	cmd.PrintErrf("%d products are in the catalog as %s says\n", len(offers), args[0])
	return nil
}
