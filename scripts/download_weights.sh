#!/usr/bin/env bash
# Download the weights that the README's commands name, into weights/ of this repository (24 GB in all).
# Needs network and the `hf` command: pip install 'huggingface_hub>=1.33'.
set -euo pipefail
unset CDPATH # with it, cd prints or goes elsewhere
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH=$PATH:$PWD/.venv/bin

usage() {
    cat <<'TEXT'
usage: bash scripts/download_weights.sh [NAME ...]     (without a name: all that training uses, the first six)

  sd35         16.3 GB  weights/stabilityai/stable-diffusion-3.5-medium: teacher, and start of student and fake score
                        (accept the licence on the model's page first, then: hf auth login)
  pick-clip     4.5 MB  weights/CLIP-ViT-H-14-laion2B-s32B-b79K: PickScore's processor
  pickscore     3.9 GB  weights/PickScore_v1
  imagereward   1.8 GB  weights/ImageReward, with BERT's tokenizer beside it
  dinov2        0.3 GB  weights/dinov2-base
  clip          1.7 GB  weights/clip-vit-large-patch14
  sdxl         13.9 GB  weights/stabilityai/stable-diffusion-xl-base-1.0: for run_train_sdxl.sh, in place of sd35
  sd35_large   27.4 GB  weights/stabilityai/stable-diffusion-3.5-large: for run_train.sh sd35_large (accept the licence)
  sd3_medium   15.4 GB  weights/stabilityai/stable-diffusion-3-medium-diffusers: run_train.sh sd3_medium (licence too)
  sdxl_v       13.9 GB  weights/Laxhar/noobai-XL-Vpred-1.0, or half of it if in 16 bits: for run_train.sh sdxl_v
  zimage       20.5 GB  weights/Tongyi-MAI/Z-Image: for run_train.sh zimage, in place of sd35
  lumina2      10.6 GB  weights/Alpha-VLLM/Lumina-Image-2.0, or up to twice that if in fp32: for run_train.sh lumina2
  qwen_image   57.7 GB  weights/Qwen/Qwen-Image: for run_train.sh qwen_image
  flux2_klein  16.0 GB  weights/black-forest-labs/FLUX.2-klein-base-4B: for run_train.sh flux2_klein
  flux2_klein_9b 34.7 GB  weights/black-forest-labs/FLUX.2-klein-base-9B: run_train.sh flux2_klein_9b (accept the licence)
  dinov3        1.2 GB  weights/dinov3-vitl16-pretrain-lvd1689m: test_diversity.py (accept the licence first)
  maniqa        0.5 GB  weights/MANIQA_PIPAL-ae6d356b.pth: test_quality.py
  vq           16.6 GB  weights/VisualQuality-R1-7B: test_quality.py
  lpips         0.6 GB  weights/lpips: --method dmd_lpips --perceptual_path weights/lpips, or with --perceptual dists

What is there is skipped; what was cut short is resumed.
TEXT
}

fail() {
    echo "download_weights: $*" >&2
    exit 1
}

# fetch NAME REPO FOLDER FILE...: download the files; the same list says when a folder is complete, for hf moves a file
# to its name only once it is whole.
fetch() {
    local name=$1 repo=$2 folder=weights/$3 file missing=()
    shift 3
    for file in "$@"; do [[ -s $folder/$file ]] || missing+=("$file"); done
    if ((${#missing[@]} == 0)); then
        echo "$name: $folder already holds $repo"
        return
    fi
    command -v hf >/dev/null || fail "the hf command is missing; pip install 'huggingface_hub>=1.33'"
    echo "$name: $repo -> $folder (${#missing[@]} files)"
    if ! hf download "$repo" "${missing[@]}" --local-dir "$folder"; then
        [[ $name != sd35 ]] || fail "$repo failed; accept the licence on huggingface.co/$repo, run: hf auth login, and try again"
        fail "$repo failed (see above); run this again to resume"
    fi
    for file in "$@"; do [[ -s $folder/$file ]] || fail "$repo no longer holds $file"; done
}

# fetch_url NAME URL FOLDER: one file that lies on no hub; it has its name only once it is whole.
fetch_url() {
    local name=$1 url=$2 file=weights/$3/${2##*/}
    if [[ -s $file ]]; then
        echo "$name: $file is there"
        return
    fi
    echo "$name: $url -> $file"
    mkdir -p "weights/$3"
    curl --fail --location --continue-at - --output "$file.part" "$url" || fail "$url failed (see above); run this again to resume"
    mv "$file.part" "$file"
}

# fetch_all NAME REPO FOLDER: a whole repository, whose shards have names of their own; complete once hf says so.
fetch_all() {
    local name=$1 repo=$2 folder=weights/$3
    command -v hf >/dev/null || fail "the hf command is missing; pip install 'huggingface_hub>=1.33'"
    echo "$name: $repo -> $folder"
    hf download "$repo" --local-dir "$folder" || fail "$repo failed (see above); run this again to resume"
}

# fetch_parts NAME REPO FOLDER: the folders of a pipeline, without single files, 16-bit twins and pictures beside them.
fetch_parts() {
    local name=$1 repo=$2 folder=weights/$3 pattern patterns=() # hf takes one pattern for each flag
    for pattern in model_index.json '*.md' '*/*.json' '*/*.txt' '*/*.model' '*/*.jinja' '*/*.safetensors'; do
        patterns+=(--include "$pattern")
    done
    for pattern in 'text_encoders/*' '*.fp16.*' '*.fp16-*'; do patterns+=(--exclude "$pattern"); done
    command -v hf >/dev/null || fail "the hf command is missing; pip install 'huggingface_hub>=1.33'"
    echo "$name: $repo -> $folder"
    hf download "$repo" --local-dir "$folder" "${patterns[@]}" ||
        fail "$repo failed; accept the licence on huggingface.co/$repo if it has one, run: hf auth login, and try again"
    [[ -s $folder/model_index.json ]] || fail "$repo holds no model_index.json"
}

download() {
    case $1 in
    # The repository also holds sd3.5_medium.safetensors, a text_encoders folder for other programs, fp16 twins of the
    # text encoders and workflow pictures: the diffusers layout needs none of them.
    sd35) fetch sd35 stabilityai/stable-diffusion-3.5-medium stabilityai/stable-diffusion-3.5-medium \
        LICENSE.md model_index.json scheduler/scheduler_config.json \
        {text_encoder,text_encoder_2}/{config.json,model.safetensors} \
        text_encoder_3/{config.json,model.safetensors.index.json,model-0000{1,2}-of-00002.safetensors} \
        {tokenizer,tokenizer_2}/{merges.txt,special_tokens_map.json,tokenizer_config.json,vocab.json} \
        tokenizer_3/{special_tokens_map.json,spiece.model,tokenizer.json,tokenizer_config.json} \
        {transformer,vae}/{config.json,diffusion_pytorch_model.safetensors} ;;
    # In fp32: student and fake score train fp32 weights, so they start from those. The repository also holds fp16 twins,
    # single files for other programs, ONNX and OpenVINO, and the older vae_1_0.
    sdxl) fetch sdxl stabilityai/stable-diffusion-xl-base-1.0 stabilityai/stable-diffusion-xl-base-1.0 \
        LICENSE.md model_index.json scheduler/scheduler_config.json \
        {text_encoder,text_encoder_2}/{config.json,model.safetensors} \
        {tokenizer,tokenizer_2}/{merges.txt,special_tokens_map.json,tokenizer_config.json,vocab.json} \
        {unet,vae}/{config.json,diffusion_pytorch_model.safetensors} ;;
    sd35_large) fetch_parts sd35_large stabilityai/stable-diffusion-3.5-large stabilityai/stable-diffusion-3.5-large ;;
    sd3_medium) fetch_parts sd3_medium stabilityai/stable-diffusion-3-medium-diffusers \
        stabilityai/stable-diffusion-3-medium-diffusers ;;
    sdxl_v) fetch_parts sdxl_v Laxhar/noobai-XL-Vpred-1.0 Laxhar/noobai-XL-Vpred-1.0 ;;
    # Whole repositories: the names of their shards and text files are their own.
    zimage) fetch_all zimage Tongyi-MAI/Z-Image Tongyi-MAI/Z-Image ;;
    lumina2) fetch_parts lumina2 Alpha-VLLM/Lumina-Image-2.0 Alpha-VLLM/Lumina-Image-2.0 ;;
    qwen_image) fetch_all qwen_image Qwen/Qwen-Image Qwen/Qwen-Image ;;
    flux2_klein) fetch_parts flux2_klein black-forest-labs/FLUX.2-klein-base-4B \
        black-forest-labs/FLUX.2-klein-base-4B ;;
    flux2_klein_9b) fetch_parts flux2_klein_9b black-forest-labs/FLUX.2-klein-base-9B \
        black-forest-labs/FLUX.2-klein-base-9B ;;
    # Of this model PickScore takes the processor alone: 4 GB of weights stay there.
    pick-clip) fetch pick-clip laion/CLIP-ViT-H-14-laion2B-s32B-b79K CLIP-ViT-H-14-laion2B-s32B-b79K \
        config.json preprocessor_config.json special_tokens_map.json tokenizer.json tokenizer_config.json vocab.json ;;
    pickscore) fetch pickscore yuvalkirstain/PickScore_v1 PickScore_v1 config.json model.safetensors ;;
    # ImageReward reads prompts with BERT's tokenizer, which its own repository lacks.
    imagereward)
        fetch imagereward zai-org/ImageReward ImageReward ImageReward.pt med_config.json
        fetch imagereward google-bert/bert-base-uncased ImageReward tokenizer.json tokenizer_config.json vocab.txt ;;
    dinov2) fetch dinov2 facebook/dinov2-base dinov2-base config.json model.safetensors preprocessor_config.json ;;
    clip) fetch clip openai/clip-vit-large-patch14 clip-vit-large-patch14 \
        config.json merges.txt model.safetensors preprocessor_config.json special_tokens_map.json tokenizer.json \
        tokenizer_config.json vocab.json ;;
    dinov3) fetch dinov3 facebook/dinov3-vitl16-pretrain-lvd1689m dinov3-vitl16-pretrain-lvd1689m \
        config.json model.safetensors preprocessor_config.json ;;
    maniqa) fetch maniqa chaofengc/IQA-PyTorch-Weights . MANIQA_PIPAL-ae6d356b.pth ;;
    lpips)
        fetch lpips chaofengc/IQA-PyTorch-Weights lpips LPIPS_v0.1_vgg-a78928a0.pth DISTS_weights-f5e65c96.pth
        fetch_url lpips https://download.pytorch.org/models/vgg16-397923af.pth lpips ;;
    vq) fetch_all vq TianheWu/VisualQuality-R1-7B VisualQuality-R1-7B ;;
    esac
}

training=(sd35 pick-clip pickscore imagereward dinov2 clip)
all=("${training[@]}" sd35_large sd3_medium sdxl sdxl_v zimage qwen_image lumina2 flux2_klein flux2_klein_9b dinov3 maniqa vq lpips)
for name in "$@"; do
    case $name in
    -h | --help) usage && exit ;;
    *) [[ " ${all[*]} " == *" $name "* ]] || fail "unknown name '$name': choose of ${all[*]}" ;;
    esac
done
(($#)) || set -- "${training[@]}"
for name in "$@"; do download "$name"; done
