"""What the commands share: options, tables, live views. No command lives here."""
