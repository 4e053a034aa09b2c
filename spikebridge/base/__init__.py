"""What has no subject of its own: errors, frozen records, files, chance, metrics, quantities."""
