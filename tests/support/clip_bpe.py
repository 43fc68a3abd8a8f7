"""An excerpt of CLIP's tokenizer: its rules and ids, with just the merges that the words of tests/realcustom/test_words.py use.

CLIP's ids are: 256 bytes, the same bytes at the end of a word, the results of 48,894 merges in their order, BOS, EOS.
A word is joined by its own merges alone, so leaving the unused ones out changes neither tokens nor ids of these words;
any other word falls into more pieces than with CLIP.
"""

from __future__ import annotations

from transformers import CLIPTokenizer

from realcustom.sprites.text import make_clip_tokenizer

BOS, EOS = 49406, 49407
# id of the result: the two pieces that are joined (github.com/openai/CLIP, MIT licence)
MERGES = {
    512: "i n",
    513: "t h",
    514: "a n",
    516: "a r",
    518: "th e</w>",
    519: "in g</w>",
    521: "o n",
    523: "o r",
    524: "e n",
    525: "o n</w>",
    527: "a t",
    529: "i t",
    530: "i n</w>",
    531: "t o</w>",
    533: "i s</w>",
    536: "a t</w>",
    537: "an d</w>",
    538: "e d</w>",
    539: "o f</w>",
    542: "e s</w>",
    546: "a c",
    549: "l o",
    552: "s h",
    568: "' s</w>",
    569: "u n",
    579: "l e</w>",
    580: "t o",
    584: "w it",
    585: "i t</w>",
    588: "s p",
    589: "th is</w>",
    593: "wit h</w>",
    598: "w e",
    605: "s u",
    606: "h o",
    616: "c on",
    637: "on e</w>",
    639: "d o",
    647: "b o",
    664: "l u",
    684: "o f",
    702: "a f",
    748: "! !</w>",
    804: "ac e</w>",
    816: "p ho",
    823: "sh i",
    902: "it s</w>",
    943: "at ed</w>",
    961: "y s</w>",
    966: "t w",
    967: "in k</w>",
    992: "at e",
    1125: "pho to</w>",
    1141: "b or",
    1237: "tw o</w>",
    1345: "g s</w>",
    1481: "c at",
    1571: "s of",
    1637: "j un",
    1639: "r un",
    1747: "g or",
    1929: "do g</w>",
    2052: "p lu",
    2063: "bo x</w>",
    2138: "sp ace</w>",
    2142: "ar ing</w>",
    2368: "c at</w>",
    2457: "c on</w>",
    2675: "ac e",
    2774: "bo x",
    2865: "g le</w>",
    3165: "a x",
    3255: "do gs</w>",
    3309: "we aring</w>",
    3360: "p ink</w>",
    3471: "c af",
    3801: "h at</w>",
    3940: "su it</w>",
    4166: "Ã ©</w>",
    4397: "z o",
    5132: "lo t",
    5586: "run s</w>",
    5988: "to y</w>",
    6195: "b one</w>",
    6357: "c ate",
    7160: "gor y</w>",
    7162: "to ys</w>",
    7857: "sp ace",
    8350: "box es</w>",
    9432: "cate gory</w>",
    10865: "jun gle</w>",
    12726: "s its</w>",
    15304: "caf Ã©</w>",
    15723: "sof a</w>",
    26638: "shi e</w>",
}


def clip_tokenizer(
    pad_token: str = "<|endoftext|>", length: int = 77, leave_out: tuple[int, ...] = ()
) -> CLIPTokenizer:
    """CLIP's tokenizer for these words; without the merges whose ids `leave_out` names. SDXL's second one pads with "!"."""
    merges = [tuple(merge.split(" ")) for number, merge in MERGES.items() if number not in leave_out]
    tokens = {number: token for token, number in make_clip_tokenizer(words=()).get_vocab().items() if number < 512}
    tokens |= {number: merge.replace(" ", "") for number, merge in MERGES.items()}
    tokens |= {BOS: "<|startoftext|>", EOS: "<|endoftext|>"}
    vocabulary = {tokens.get(number, f"<unused {number}>"): number for number in range(EOS + 1)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token=pad_token, model_max_length=length)
