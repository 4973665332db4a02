"""Human preference: ImageReward, PickScore and CLIP score of a model's images, one a prompt.

    accelerate launch test_preference.py
    accelerate launch test_preference.py --model outputs/tiny/dpdmd --prompts_txt data/shapes_eval.txt

Edit the paths below, or give each as a flag of the same name in small letters (--help lists them).
"""

from dpdmd.utils import signals

if __name__ == "__main__":  # before the imports below, which take seconds
    signals.install_exit_handlers("test_preference.py")

import sys

from dpdmd.evaluation.program import Program

MODEL = "outputs/sd35_dpdmd/sd35m_t30_1024_lr1e5_4nfe_anchor5"  # run, checkpoint, pipeline folder, or a network's file
BASE_MODEL = "weights/stabilityai/stable-diffusion-3.5-medium"  # the pipeline that a network alone belongs to
IMAGES = None  # a folder of images to score instead, or a CSV file with the columns file and prompt
PROMPTS_TXT = "data/prompts_eval.txt"  # the paper: data/pickapic_test.txt and data/coco2014_10k.txt
OUTPUT_DIR = "outputs/test_preference"

PICK_PROCESSOR_PATH = "weights/CLIP-ViT-H-14-laion2B-s32B-b79K"
PICK_MODEL_PATH = "weights/PickScore_v1"
IR_MODEL_PATH = "weights/ImageReward/ImageReward.pt"
IR_MED_CONFIG = "weights/ImageReward/med_config.json"
IR_TOKENIZER_PATH = None  # without it the folder of ImageReward.pt
CLIP_SCORE_PATH = "weights/clip-vit-large-patch14"  # an empty path leaves a scorer out

PROGRAM = Program(
    name="test_preference.py",
    description="ImageReward, PickScore and CLIP score of a model, one image a prompt (paper, table 1).",
    scorers=("imagereward", "pickscore", "clip_score"),
    defaults={
        "model": MODEL,
        "base_model": BASE_MODEL,
        "images": IMAGES,
        "prompts_txt": PROMPTS_TXT,
        "output_dir": OUTPUT_DIR,
        "pick_processor_path": PICK_PROCESSOR_PATH,
        "pick_model_path": PICK_MODEL_PATH,
        "ir_model_path": IR_MODEL_PATH,
        "ir_med_config": IR_MED_CONFIG,
        "ir_tokenizer_path": IR_TOKENIZER_PATH,
        "clip_score_path": CLIP_SCORE_PATH,
        "num_samples": 1,
    },
)

if __name__ == "__main__":
    sys.exit(signals.final_status(PROGRAM.main()))
