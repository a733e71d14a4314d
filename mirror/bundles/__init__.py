"""Images carried between sites: export, import, inventories, signatures, and other tools' layouts."""
