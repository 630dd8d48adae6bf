"""Fine-tuning with low-rank adapters: the base keeps its bits, a small addition learns.

    python train_lora.py                                      # out/full_sft, the demo's toy shop
    python train_lora.py --init_from Qwen3-0.6B --data_path chats.jsonl --lora_rank 16
    python eval_model.py --model out/full_sft --lora out/lora

train_full_sft.py with three differences: adapters are attached to the loaded model, they alone are
trained, and they alone are saved, as a PEFT folder (model/lora.py holds the equation).
"""

from functools import partial
from pathlib import Path

import torch

from dataset.tokenizer import load_tokenizer
from model import lora
from model.hf_format import load_model
from training import checkpoint, cli, data
from training.evaluation import loss_and_answers
from training.losses import masked_cross_entropy
from training.lr_schedule import learning_rate
from training.optimizers import build_optimizer, clip_gradients
from training.run import Run

SEQ_LEN = 1024  # tokens per row: all but a few conversations of real data fit (docs/decisions.md)


def parse_args():
    parser = cli.new_parser(__doc__)
    cli.add_model_flags(parser, of_a_loaded_model=True)
    cli.add_lora_flags(parser, rank=8)
    cli.add_tuning_flags(parser, "conversations", "out/full_sft", SEQ_LEN, val_fraction=0.02)
    cli.add_training_flags(parser, epochs=2, batch_size=4, learning_rate=2e-3, weight_decay=0.0)
    cli.add_run_flags(parser, out_dir="out/lora")
    return parser.parse_args()  # (1) parse the command line


def main():
    args = parse_args()
    args.init_from = checkpoint.model_folder(args.init_from, "--init_from")
    tokenizer = load_tokenizer(args.init_from)

    # (2) the architecture
    config = cli.build_config(args, tokenizer.vocab_size, SEQ_LEN)
    adapter = cli.build_lora(args, config)

    # (3) under torchrun: join the process group, take this rank's device
    run = Run(args, config, adapter)

    # (4) the model: the base, frozen, and adapters: resumed or new
    model = load_model(args.init_from, run.home, config=config)
    torch.manual_seed(args.seed)  # the same first adapters on every rank
    lora.attach(model, adapter)
    if run.resumed_from:
        lora.load_adapter(model, run.resumed_from, run.base_sha256)
    model = run.place(model, packed=True)

    # (5) the dataset: conversations encoded with their masks, packed whole into rows
    dataset, val_dataset = data.conversations(args, tokenizer, run, demo="lora.jsonl")
    questions = data.questions(args, tokenizer, val_dataset)

    # (6) the loader: an order that depends on seed and epoch alone, shared out among the ranks
    loader = run.loader(dataset, val_dataset)

    # (7) the optimizer, (8) the scaler, which does something for float16 alone
    optimizer = build_optimizer(
        args.optimizer, model, args.learning_rate, args.weight_decay, run.dtype
    )
    scaler = torch.amp.GradScaler(run.device.type, enabled=run.dtype == torch.float16)

    # (9) compile; several processes: DistributedDataParallel averages the gradients
    parallel, masked_loss = run.parallel(model), run.compile(masked_cross_entropy)

    measure = partial(loss_and_answers, run, val_dataset, tokenizer, questions)

    def write_model(folder: Path, weights: dict):
        lora.save_adapter(model, adapter, folder, args.init_from, run.base_sha256, weights)
        tokenizer.save(folder, chat_template=True)

    run.begin(optimizer, scaler, measure, write_model)

    # (10) for every epoch, for every batch
    for epoch in run.epochs():
        for X, Y, loss_mask, document_ids in run.batches(loader, epoch):
            # (11) set the learning rate
            lr = learning_rate(run.step, run.total_steps, args)  # --lr_schedule
            for group in optimizer.param_groups:
                group["lr"] = lr

            with run.gradient_sync():
                # (12) forward, (13) masked cross-entropy, (14) the experts' auxiliary loss
                with run.autocast:
                    logits, aux_loss = parallel(X, document_ids)
                    cross_entropy = masked_loss(logits, Y, loss_mask)
                    loss = cross_entropy + aux_loss

                # (15) divide by the accumulation steps; `share` turns this micro-batch's mean into
                # its part of the mean over all tokens of the update: 1 where all rows are full
                loss = loss * run.share(loss_mask) / args.accumulation_steps

                # (16) scale, backward
                scaler.scale(loss).backward()
            run.count(loss=cross_entropy, aux_loss=aux_loss)
            if not run.at_boundary:
                continue

            # (17) unscale, clip, step, update the scaler, zero the gradients
            scaler.unscale_(optimizer)
            grad_norm = clip_gradients(model, args.grad_clip)
            run.skip_unless_finite(grad_norm)  # if it is not, the next line changes nothing
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)

            # (18) print, log to wandb, measure the held-out loss
            run.update_done(lr, grad_norm)

            # (19) save
            run.save_if_due()

    return run.close()


if __name__ == "__main__":
    cli.run(main)
