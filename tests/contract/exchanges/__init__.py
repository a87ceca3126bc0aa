"""Every exchange of clients with the platform, to be played on a real one: `docs/transcripts.md` is what comes of it."""
