"""Chats: what both frameworks' classes ask of the engine, from messages to a reply."""
