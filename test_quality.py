"""Visual quality: MANIQA and VisualQuality-R1 of a model's images, or of any folder of images.

    python test_quality.py --images outputs/test_preference/pictures
    accelerate launch test_quality.py --model outputs/sd35_dpdmd/mine

Edit the paths below, or give each as a flag of the same name in small letters (--help lists them).
"""

from dpdmd.utils import signals

if __name__ == "__main__":  # before the imports below, which take seconds
    signals.install_exit_handlers("test_quality.py")

import sys

from dpdmd.evaluation.program import Program

MODEL = "outputs/sd35_dpdmd/sd35m_t30_1024_lr1e5_4nfe_anchor5"  # run, checkpoint, pipeline folder, or a network's file
BASE_MODEL = "weights/stabilityai/stable-diffusion-3.5-medium"  # the pipeline that a network alone belongs to
IMAGES = None  # a folder of images to score instead, such as outputs/test_preference/pictures
PROMPTS_TXT = "data/prompts_eval.txt"  # for a model's images; the paper: data/pickapic_test.txt, coco2014_10k.txt
OUTPUT_DIR = "outputs/test_quality"

MANIQA_PATH = "weights/MANIQA_PIPAL-ae6d356b.pth"
VQ_PATH = "weights/VisualQuality-R1-7B"  # an empty path leaves a scorer out

PROGRAM = Program(
    name="test_quality.py",
    description="MANIQA and VisualQuality-R1 of a model or of a folder of images (paper, table 1).",
    scorers=("vqr1", "maniqa"),
    defaults={
        "model": MODEL,
        "base_model": BASE_MODEL,
        "images": IMAGES,
        "prompts_txt": PROMPTS_TXT,
        "output_dir": OUTPUT_DIR,
        "maniqa_path": MANIQA_PATH,
        "num_crops": 10,
        "maniqa_scale": 0.8,
        "vq_path": VQ_PATH,
        "vq_sample": False,
        "num_samples": 1,
    },
)

if __name__ == "__main__":
    sys.exit(signals.final_status(PROGRAM.main()))
