"""Token texts that a page could take for markup, or that cannot be seen or encoded."""

HOSTILE = [
    "</script><script>window.hacked = 1</script>",
    "<img src=x onerror=window.hacked=1>",
    "</style>",
    "<!--<script src=x>",
    '"&quot;\\',
    "\u2028\u2029",
    "\ud83d",
    "\x00\x1b",
    "\u202eevil",
]
