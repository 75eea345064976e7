"""Names that try to be more than names, wherever they are written."""

HOSTILE = (
    "user\u2028trust_remote_code: true",
    "user\u2029trust_remote_code: true",
    "user\x85trust_remote_code: true",
    "a\ntrust_remote_code: true\r\n---\r# heading",
    "\x1b[2J\x1b]0;title\x07 red \x9b31m",
    "\u202etxt.exe\u2066\u2069\u200f\ufeff",
    "</script><script>alert(1)</script><img src=x onerror=alert(1)>",
    "'; __import__('os').system('true') #\" \\",
    "[bold red]rich[/] [link=http://x]y[/link] :warning:",
    "![x](http://x/y.png) [a](javascript:b) <http://z> www.a.b c@d.e",
    "```\nrm -rf /\n``` ~~~ `code` | cell | **b** _i_ $$x$$ &amp; <!-- c",
    "- item",
    "# heading",
    "1. one",
    "{% raw %}{{ 7 * 7 }}{% endraw %} %(a)s ${b} {0}",
    "a: b #c & *alias !!python/object/apply:os.system ['true']",
    "\ud800 lone, \ufffe none, \x00 nul, \u0600 mark, \U000e0041 tag",
    "nobreak\xa0space \u4e2d\u6587 caf\u00e9 \U0001f468\u200d\U0001f469",
)
