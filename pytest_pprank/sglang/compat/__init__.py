"""Every rule about what differs between SGLang's releases, as functions in the field's words."""
