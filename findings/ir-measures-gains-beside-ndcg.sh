#!/bin/sh
# ir-measures 0.4.3: nDCG@10 asked together with nDCG(gains={...})@10 is, in some processes, computed
# with the other's gains.
#
# Guess before the first run: a measure's value does not depend on which measures are asked beside it.
# Seen: in one call of ir_measures.calc_aggregate, nDCG@10 has the value of nDCG(gains={1:5})@10, and
# nDCG(gains={1:5})@10 is 0; each asked alone is right. It depends on Python's hash seed, so the same
# program gives right and wrong values from one start to the next. The provider of pytrec_eval walks
# through a set of measures, and puts one without gains into whichever invocation there is already,
# also one whose grades are mapped, where both have one name. So: one call for each set of parameters.
#
# It ends with 0 while that is so, and with 1 if it changes.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet ir-measures==0.4.3 pytrec-eval-terrier==0.5.11
cat > "$work/ask.py" <<'PYTHON'
import ir_measures

qrels = {"1": {"a": 1, "b": 2, "c": 1}}
run = {"1": {"a": 3.0, "x": 2.0, "b": 1.0}}
plain, mapped = (ir_measures.parse_measure(m) for m in ("nDCG@10", "nDCG(gains={1: 5})@10"))
alone = {m: ir_measures.calc_aggregate([m], qrels, run)[m] for m in (plain, mapped)}
both = ir_measures.calc_aggregate([plain, mapped], qrels, run)
for values in (alone, both):
    print(f"{values[plain]:.4f} {values[mapped]:.4f}", end="  ")
print()
PYTHON
"$work/venv/bin/pip" list 2>/dev/null | grep -E "ir[-_]measures|pytrec"
echo "hash seed: nDCG@10 and nDCG(gains={1: 5})@10 alone, then together"
for seed in 0 1 2 3 4 5 6 7 8 9; do
    printf '%s: ' "$seed"
    PYTHONHASHSEED=$seed "$work/venv/bin/python" -W ignore "$work/ask.py"
done | tee "$work/seen"
# By hand: (1 + 2/2) / (2 + 1/log2(3) + 1/2) = 0.6388; with gains 5, 2, 5 it is 0.6554.
[ "$(grep -c ': 0.6388 0.6554' "$work/seen")" = 10 ] || { echo changed; exit 1; }
grep -q '  0.6388 0.6554' "$work/seen" || { echo changed; exit 1; }
grep -q '  0.6554 0.0000' "$work/seen" || { echo changed; exit 1; }
