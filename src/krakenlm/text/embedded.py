from krakenlm.text.formats import FORMATS
from krakenlm.text.world import couples
TRAIN=couples(False)
NAMES=tuple(FORMATS)
def document(draws):
    f=FORMATS[draws.one(NAMES)]
    rows=f.rows(draws,draws.one(TRAIN),None)
    parts=[]
    for i,r in enumerate(rows):
        story,q,ch,y=f.text(r)
        parts.append((story if i==0 else '')+q+ch[y])
    return ''.join(parts),draws.take_nats()
