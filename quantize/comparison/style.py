"""The style sheet of a report. Colours are those of report_drawing.PALETTE."""

STYLE = """
*{box-sizing:border-box}
html{scroll-behavior:smooth}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",sans-serif}
nav{position:sticky;top:0;z-index:1;background:var(--paper);border-bottom:1px solid var(--grid);
padding:.55rem max(1rem,calc(50vw - 36rem));display:flex;gap:1.2rem;overflow-x:auto;white-space:nowrap;font-size:.9rem}
nav a{color:var(--pale);text-decoration:none}
nav a:hover,nav a:focus{color:var(--ink);text-decoration:underline}
main{max-width:74rem;margin:0 auto;padding:0 1rem 4rem}
section{scroll-margin-top:3rem}
header{padding:2.2rem 0 .4rem}
.kind{margin:0;color:var(--c0);font-weight:600;font-size:.85rem}
h1{font-size:clamp(1.35rem,3.2vw,2rem);line-height:1.3;margin:.3rem 0 .8rem;font-weight:650;max-width:54rem;
overflow-wrap:anywhere}
h2{font-size:1.3rem;margin:2.6rem 0 .8rem;padding-top:.8rem;border-top:1px solid var(--grid)}
h3{font-size:1.02rem;margin:0 0 .5rem}
h4{font-size:.9rem;margin:0 0 .3rem;font-weight:600;overflow-wrap:anywhere}
p{max-width:54rem}
.pale,figcaption,small{color:var(--pale)}
.warning{border-left:3px solid var(--c1);padding-left:.7rem}
i{display:inline-block;width:.7em;height:.7em;border-radius:2px;margin-right:.5em}
.wide{overflow-x:auto}
table{border-collapse:collapse;font-size:.9rem;min-width:100%}
th,td{padding:.45rem .7rem;border-bottom:1px solid var(--grid);text-align:left;vertical-align:top}
thead th{font-weight:600;font-size:.82rem;vertical-align:bottom;border-bottom:2px solid var(--grid)}
tbody th{font-weight:500;white-space:nowrap}
.numbers td{font-variant-numeric:tabular-nums;text-align:right;white-space:nowrap}
.numbers thead th:not(:first-child){text-align:right}
small{display:block;font-weight:400;font-size:.8rem}
article{display:grid;grid-template-columns:minmax(9rem,15rem) 1fr;gap:1.4rem;padding:1.3rem 0;
border-bottom:1px solid var(--grid)}
article:last-child{border-bottom:0}
article figure{margin:0}
article img{width:100%;border:1px solid var(--grid);border-radius:4px;display:block}
article figcaption{font-size:.85rem;margin-top:.3rem;overflow-wrap:anywhere}
.question{margin:0 0 .8rem;font-weight:600;white-space:pre-wrap;overflow-wrap:anywhere}
.answers{display:grid;grid-template-columns:repeat(auto-fit,minmax(12.5rem,1fr));gap:1rem}
.answer .pale{font-size:.82rem;margin:.4rem 0 0}
blockquote{margin:0;padding:.6rem .8rem;border:1px solid var(--grid);border-radius:4px;white-space:pre-wrap;
overflow-wrap:anywhere;font-size:.93rem;max-height:22rem;overflow-y:auto}
mark{background:color-mix(in srgb,var(--c1) 28%,transparent);color:inherit;border-radius:2px}
.chart{margin:0 0 2.2rem}
.chart figcaption{font-size:.87rem;max-width:54rem;margin-top:.4rem}
.chart svg{display:block;width:100%;max-width:60rem;min-width:40rem;height:auto;
font-family:system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
details{margin:.5rem 0}
summary{cursor:pointer;padding:.3rem 0}
.chart summary{font-weight:600}
.chart:has(details:not([open])){margin-bottom:.6rem}
li{overflow-wrap:anywhere}
@media(max-width:40rem){article{grid-template-columns:1fr}article figure{max-width:16rem}}
@media print{nav{display:none}body{font-size:12px}blockquote{max-height:none}}
"""
