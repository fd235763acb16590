"""IR to frozen kernels to source text. Nothing here touches a device."""
