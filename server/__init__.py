"""The MCP door, the HTTP app around it, the command line and the composition root."""
