"""Pretraining: a language model from nothing, by predicting the next token of raw text.

    python train_pretrain.py                                       # the embedded demo corpus
    python train_pretrain.py --preset small --data_path my.jsonl   # one {"text": ...} per line
    torchrun --nproc_per_node 8 train_pretrain.py --preset base --data_path a.jsonl b.parquet

The numbers in the comments are the steps of the training sequence that every script here follows.
What is learned stands here; what keeps a run alive (processes, signals, checkpoints, the log) is
the business of `Run` in training/run.py. Steps, intervals and warmup count optimizer steps. Started
again with the same command, a run goes on from its newest checkpoint.
"""

from pathlib import Path

import torch

from dataset.pretrain import PretrainDataset
from dataset.tokenizer import load_tokenizer
from model.hf_format import inherited, load_model, save_model
from model.model import MiniMindLM
from training import checkpoint, cli, data
from training.evaluation import continue_text, held_out_loss
from training.losses import masked_cross_entropy
from training.lr_schedule import learning_rate
from training.optimizers import build_optimizer, clip_gradients
from training.run import Run


def parse_args():
    parser = cli.new_parser(__doc__)
    cli.add_model_flags(parser)  # --preset and one flag for every LMConfig field
    cli.add_text_flags(parser, max_seq_len=256, val_fraction=0.01)
    cli.add_training_flags(parser, epochs=1, batch_size=4, learning_rate=2e-3, weight_decay=0.1)
    cli.add_run_flags(parser, out_dir="out/pretrain")
    return parser.parse_args()  # (1) parse the command line


def main():
    args = parse_args()
    if args.init_from is not None:
        args.init_from = checkpoint.model_folder(args.init_from, "--init_from")
    tokenizer = load_tokenizer(args.tokenizer or args.init_from or cli.TOKENIZER)

    # (2) the architecture
    config = cli.build_config(args, tokenizer.vocab_size)

    # (3) under torchrun: join the process group, take this rank's device
    run = Run(args, config)

    # (4) the model: resumed, loaded, or new
    base = inherited(args.init_from) if args.init_from else None
    if start := run.resumed_from or args.init_from:
        model = load_model(start, run.home, config=config, weights_file=run.exact_weights)
    else:
        torch.manual_seed(args.seed)  # the same first weights on every rank
        with run.home:
            model = MiniMindLM(config)
    model = run.place(model)

    # (5) the dataset: texts tokenised into one stream, rows cut from it
    stream, val_stream = data.texts(args, tokenizer, run)
    dataset = PretrainDataset(
        stream, args.max_seq_len, documents_first=True, going_on_from=run.data_before
    )
    val_dataset = PretrainDataset(val_stream, args.max_seq_len) if val_stream else None

    # (6) the loader: an order that depends on seed and epoch alone, shared out among the ranks
    loader = run.loader(dataset, val_dataset)

    # (7) the optimizer, (8) the scaler, which does something for float16 alone
    optimizer = build_optimizer(
        args.optimizer, model, args.learning_rate, args.weight_decay, run.dtype
    )
    scaler = torch.amp.GradScaler(run.device.type, enabled=run.dtype == torch.float16)

    # (9) compile; several processes: DistributedDataParallel averages the gradients
    parallel, masked_loss = run.parallel(model), run.compile(masked_cross_entropy)

    def measure():
        """The held-out loss, and how the model continues a held-out text."""
        result = held_out_loss(
            run.compiled, val_dataset, args.batch_size, tokenizer.token_bytes, run.ranks,
            run.autocast, run.stop,
        )  # fmt: skip
        lines, opening = [], val_dataset[0][0][:16].tolist()
        if run.generates:
            lines = [continue_text(model, tokenizer, opening, 60, args.seed)]
        return {"val_loss": result["loss"], "val_bits_per_byte": result["bits_per_byte"]}, lines

    def write_model(folder: Path, weights: dict):
        save_model(model, folder, tokenizer.eos_id, weights, base)
        tokenizer.save(folder, chat_template=False)  # a base model does not chat

    run.begin(optimizer, scaler, measure, write_model)

    # (10) for every epoch, for every batch
    for epoch in run.epochs():
        for X, Y, loss_mask in run.batches(loader, epoch):
            # (11) set the learning rate
            lr = learning_rate(run.step, run.total_steps, args)  # --lr_schedule
            for group in optimizer.param_groups:
                group["lr"] = lr

            with run.gradient_sync():
                # (12) forward, (13) masked cross-entropy, (14) the experts' auxiliary loss
                with run.autocast:
                    logits, aux_loss = parallel(X)
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
