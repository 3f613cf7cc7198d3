"""A run from configuration to certificate, as a library. The only room that joins the others."""
