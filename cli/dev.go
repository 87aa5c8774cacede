package cli

import "github.com/spf13/cobra"

func newDev() *cobra.Command {
	return &cobra.Command{Use: "dev"}
}
