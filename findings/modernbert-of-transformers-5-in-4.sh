#!/usr/bin/env bash
# A ModernBERT that transformers 5 saved is read by transformers 4.57 with other angles and other
# kinds of layers, and no word is said.
#
# Behaviour: transformers 5 writes `rope_parameters` and `layer_types` into config.json and no
# longer `global_rope_theta`, `local_rope_theta` and `global_attn_every_n_layers`. transformers 4.57
# reads only these three, does not complain of the others, and takes its defaults: 160000, 10000,
# and full attention in every third layer, the first among them.
# Output seen: a model of two layers (sliding, full; theta 5000): logits differ by more than 0.01
# and no warning names the keys; with the three older keys added by hand, and the layers in an
# order that they can say (full, sliding), they are equal to 1e-5.
# Seen with torch 2.13.0, transformers 5.24.0 and 4.57.6. Fails when that changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for version in 5.24.0 4.57.6; do
    python3 -m venv "$work/$version"
    "$work/$version/bin/pip" install -q torch==2.13.0 "transformers==$version" 2>/dev/null
done
cat > "$work/write.py" <<'PY'
import json, sys, torch, transformers
from pathlib import Path
from transformers import ModernBertConfig, ModernBertForSequenceClassification

for name, kinds in (("plain", "sf"), ("mended", "fs")):
    torch.manual_seed(0)
    full = {"s": "sliding_attention", "f": "full_attention"}
    config = ModernBertConfig(
        vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=48, max_position_embeddings=64, local_attention=8, num_labels=1,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2,
        initializer_range=0.2, layer_types=[full[k] for k in kinds],
        rope_parameters={k: {"rope_type": "default", "rope_theta": 5000.0} for k in full.values()},
    )
    model = ModernBertForSequenceClassification(config).eval()
    folder = Path(sys.argv[1], name)
    model.save_pretrained(folder)
    ids = torch.arange(1, 31)[None]
    with torch.no_grad():
        logit = model(input_ids=ids).logits.item()
    (folder / "logit.json").write_text(json.dumps(logit))
    path = folder / "config.json"
    saved = json.loads(path.read_text())
    assert "global_rope_theta" not in saved and "global_attn_every_n_layers" not in saved
    if name == "mended":
        saved |= {"global_rope_theta": 5000.0, "local_rope_theta": 5000.0}
        saved |= {"global_attn_every_n_layers": 2}
        path.write_text(json.dumps(saved))
print("written by transformers", transformers.__version__)
PY
cat > "$work/read.py" <<'PY'
import json, sys, torch, transformers
from pathlib import Path
from transformers import AutoModelForSequenceClassification

print("read by transformers", transformers.__version__)
for name in ("plain", "mended"):
    folder = Path(sys.argv[1], name)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        logit = model(input_ids=torch.arange(1, 31)[None]).logits.item()
    off = abs(logit - json.loads((folder / "logit.json").read_text()))
    print(f"{name}: {off:.2g} off")
    if (off > 0.01) != (name == "plain") or (name == "mended" and off > 1e-5):
        sys.exit("no longer so")
PY
"$work/5.24.0/bin/python" "$work/write.py" "$work/models" 2>/dev/null
"$work/4.57.6/bin/python" "$work/read.py" "$work/models" 2> "$work/said"
if grep -qE "rope_parameters|layer_types" "$work/said"; then
    cat "$work/said"
    echo "no longer silent"
    exit 1
fi
