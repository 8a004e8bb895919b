"""How the HTML report looks: light and dark, from a phone's width up, and on paper.

Stable is blue and candidate orange, a pair that is told apart with any colour vision; nothing is said by colour alone.
"""

STYLE = """
:root{--ground:#fff;--card:#f6f7f9;--text:#16202c;--dim:#56616f;--line:#dde2e8;--stable:#2463c9;--candidate:#b6520a;
--fill:#2463c933;--bar:#b6520a;--good:#12703a;--bad:#b3261e;--open:#7a5a00;--note:#fff6df;--noteline:#e6c66a}
@media(prefers-color-scheme:dark){:root{--ground:#11161d;--card:#1a212b;--text:#e6ebf1;--dim:#9dabbb;--line:#303a47;
--stable:#7eb0ff;--candidate:#ffa35c;--fill:#7eb0ff40;--bar:#e5873c;--good:#62d394;--bad:#ff8d84;--open:#ebc35b;
--note:#2a2412;--noteline:#6d5a1f}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:64rem;padding:1.5rem 1.25rem 3rem;background:var(--ground);color:var(--text);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;-webkit-text-size-adjust:100%}
h1,h2,h3,p{margin:0}
h1{font-size:2rem;line-height:1.2;overflow-wrap:anywhere}
h2{font-size:1.3rem;margin:0 0 .5rem}
h3{font-size:1.02rem;margin:0 0 .5rem;overflow-wrap:anywhere}
section{margin-top:2.5rem}
code{font:.875em/1.5 ui-monospace,"SF Mono",Menlo,Consolas,"DejaVu Sans Mono",monospace;overflow-wrap:anywhere}
.kicker{color:var(--dim);font-size:.8rem;letter-spacing:.08em;text-transform:uppercase}
.meta,.lead,.dim,footer,figcaption{color:var(--dim)}
.meta{font-size:.95rem}
.lead{margin-bottom:.75rem;font-size:.95rem;max-width:48rem}
.headline{font-size:1.25rem;line-height:1.45;font-weight:600;margin:1.25rem 0;max-width:52rem;overflow-wrap:anywhere}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(13rem,1fr));gap:.75rem;margin:0}
.tiles>div,.card{background:var(--card);border:1px solid var(--line);border-radius:.6rem;padding:.85rem 1rem}
.tiles dt{color:var(--dim);font-size:.875rem}
.tiles dd{margin:0}
.tiles strong{display:block;font-size:1.75rem;line-height:1.3;font-variant-numeric:tabular-nums}
.tiles span{color:var(--dim);font-size:.875rem}
.notes{margin-top:1rem;background:var(--note);border:1px solid var(--noteline);border-radius:.6rem;padding:.75rem 1rem}
.notes ul{margin:0;padding-left:1.1rem}
.notes li+li{margin-top:.35rem}
.scroll{overflow-x:auto;border-radius:.3rem}
.scroll:focus-visible,summary:focus-visible{outline:2px solid var(--stable);outline-offset:2px}
table{border-collapse:collapse;width:100%;font-size:.9375rem;font-variant-numeric:tabular-nums}
caption{text-align:left;color:var(--dim);font-size:.875rem;padding-bottom:.35rem}
th,td{padding:.42rem .9rem .42rem 0;text-align:left;border-bottom:1px solid var(--line);vertical-align:top}
th:last-child,td:last-child{padding-right:0}
thead th{font-weight:500;color:var(--dim);font-size:.875rem;white-space:nowrap;vertical-align:bottom}
tbody th{font-weight:500}
tbody tr:last-child>*{border-bottom:0}
.n{text-align:right;white-space:nowrap}
.whose{white-space:nowrap}
.bar{display:inline-block;width:5rem;height:.6rem;border-radius:.3rem;background:var(--line);vertical-align:middle;
overflow:hidden;text-align:left}
.bar i{display:block;height:100%;background:var(--bar);border-radius:.3rem}
.value{display:inline-block;min-width:4.2rem}
.badge{display:inline-block;border:1px solid currentColor;border-radius:1rem;padding:0 .6rem;font-size:.8125rem;
font-weight:600;white-space:nowrap}
.good{color:var(--good)}.bad{color:var(--bad)}.open{color:var(--open)}
.card{margin-top:1rem}
.card p{margin:.35rem 0 .6rem}
.two{display:grid;gap:1rem 2.5rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,20rem),1fr))}
.to{color:var(--dim);padding:0 .15rem}
figure{margin:.25rem 0 .75rem}
svg{display:block;width:100%;height:7.5rem;border-bottom:1px solid var(--line)}
svg path{vector-effect:non-scaling-stroke;stroke-linejoin:round}
svg .stable{fill:var(--fill);stroke:none}
svg .candidate{fill:none;stroke:var(--candidate);stroke-width:2}
figcaption{display:flex;justify-content:space-between;gap:1rem;font-size:.875rem;padding-top:.3rem}
.key{display:inline-block;width:.75rem;height:.75rem;border-radius:.15rem;margin:0 .4rem 0 0;vertical-align:-.05rem}
figcaption .key.candidate{margin-left:1rem}
.key.stable{background:var(--fill);border:1px solid var(--stable)}
.key.candidate{background:transparent;border:2px solid var(--candidate)}
.chip{display:inline-block;border:1px solid var(--line);border-radius:1rem;padding:.05rem .65rem;margin:0 .3rem .3rem 0;
font-size:.875rem;font-weight:400;color:var(--dim);background:var(--ground)}
.chip b{color:var(--text);font-weight:600}
.reasons{margin:0 0 .5rem;padding-left:1.1rem;overflow-wrap:anywhere}
summary{cursor:pointer;color:var(--stable);padding:.4rem 0}
.inputs{display:grid;grid-template-columns:auto 1fr;gap:.2rem 1rem;margin:.75rem 0 .5rem}
.inputs dt{color:var(--dim)}
.inputs dd{margin:0;min-width:0}
.example td{min-width:9rem}
footer{margin-top:3rem;border-top:1px solid var(--line);padding-top:1rem;font-size:.875rem}
@media(max-width:36rem){body{padding:1rem .9rem 2rem}h1{font-size:1.6rem}.headline{font-size:1.1rem}
.tiles{grid-template-columns:1fr 1fr;gap:.6rem}.tiles>div,.card{padding:.7rem .75rem}.tiles strong{font-size:1.35rem}
.bar{width:3rem}.inputs{grid-template-columns:1fr}}
@media print{body{max-width:none;font-size:11pt}.card,tr{break-inside:avoid}.scroll{overflow:visible}}
"""
