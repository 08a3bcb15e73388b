"""Writes a MIL text with operations on constants, and the values that coremltools infers for them.

Usage: mil_ops.py crates/quince-mil/tests/ops.mil (with coremltools 9.0 and numpy)
"""
import sys

import numpy as np
import coremltools as ct
from coremltools.converters.mil import Builder as mb
rng=np.random.default_rng(0)
cases=[]
def run(op,**kw):
    r={}
    @mb.program(input_specs=[mb.TensorSpec(shape=(1,))], opset_version=ct.target.iOS17)
    def prog(x):
        y=getattr(mb,op)(**kw)
        ys=y if isinstance(y,(tuple,list)) else [y]
        r['v']=[v.val for v in ys]
        return mb.identity(x=x)
    if any(v is None for v in r['v']): return print(op,"no value inference",file=sys.stderr)
    cases.append((op,kw,[np.asarray(v) for v in r['v']]))
x=rng.normal(size=(2,3,2)).astype(np.float32)
u=rng.uniform(0.1,0.9,size=(2,3,2)).astype(np.float32)
xi=rng.integers(-9,9,size=(2,3,2)).astype(np.int32)
for op in "abs atan ceil cos cosh erf exp exp2 floor round sign sin sinh square tan tanh relu relu6 sigmoid softplus softsign".split(): run(op,x=x)
for op in "acos asin atanh sqrt".split(): run(op,x=u)
for op in "abs sign square".split(): run(op,x=xi)
for op in "inverse log rsqrt".split(): run(op,x=u)
y=rng.normal(size=(3,1)).astype(np.float32)
yi=rng.integers(1,5,size=(3,1)).astype(np.int32)*np.array([[1],[-1],[1]],np.int32)
for op in "add sub mul real_div floor_div mod maximum minimum equal not_equal greater greater_equal less less_equal".split():
    run(op,x=x,y=y)
    if op!="real_div": run(op,x=xi,y=yi)
run("pow",x=u,y=y)
for op in "reduce_sum reduce_mean reduce_max reduce_min reduce_prod reduce_l1_norm reduce_l2_norm reduce_sum_square reduce_log_sum reduce_log_sum_exp".split():
    run(op,x=u,axes=[1,-1]); run(op,x=u,axes=[0],keep_dims=True)
    if 'log' not in op: run(op,x=xi,axes=[-1])
for op in ("reduce_argmax","reduce_argmin"): run(op,x=x,axis=1); run(op,x=x,axis=-2,keep_dims=True)
for m in ("EXACT","TANH_APPROXIMATION","SIGMOID_APPROXIMATION"): run("gelu",x=x,mode=m)
f=np.float32
run("elu",x=x,alpha=f(.7)); run("leaky_relu",x=x,alpha=f(.1)); run("thresholded_relu",x=x.copy(),alpha=f(.3))
run("clamped_relu",x=x,alpha=f(.2),beta=f(.9)); run("linear_activation",x=x,alpha=f(.2),beta=f(.9)); run("scaled_tanh",x=x,alpha=f(.2),beta=f(.9)); run("sigmoid_hard",x=x,alpha=f(.2),beta=f(.5))
run("prelu",x=x,alpha=np.array([.3,.3,.3],f)); run("softplus_parametric",x=x,alpha=np.array([.3,.2,.1],f),beta=np.array([.5,1,2],f))
run("softmax",x=x,axis=1); run("softmax",x=x)
run("layer_norm",x=x,axes=[-1],gamma=rng.normal(size=2).astype(f),beta=rng.normal(size=2).astype(f),epsilon=f(1e-3)); run("layer_norm",x=x,axes=[1,2])
run("l2_norm",x=x)
run("clip",x=x,alpha=f(-.5),beta=f(.5)); run("threshold",x=x,alpha=f(.1))
run("cumsum",x=x,axis=1); run("cumsum",x=xi,axis=2,reverse=True)
run("topk",x=x,k=2,axis=1); run("topk",x=x,k=2,ascending=True); run("argsort",x=x,axis=-1)
run("cast",x=x*3,dtype="int32"); run("cast",x=xi,dtype="fp32"); run("cast",x=x,dtype="fp16")
run("select",cond=xi>0,a=x,b=np.float32(-1)*np.ones((1,),f))
def ty(a): return {'float32':'fp32','float16':'fp16','int32':'int32','int64':'int32','bool':'bool','float64':'fp32'}[a.dtype.name]
def lit(v):
    if isinstance(v,str): return 'string("%s")'%v
    a=np.asarray(v)
    if a.dtype==np.int64: a=a.astype(np.int32)
    t=ty(a)
    def n(b):
        if b.ndim: return "["+", ".join(n(c) for c in b)+"]"
        s=b.item()
        return str(s).lower() if isinstance(s,(bool,int)) else repr(b.astype(np.float32).item()) if not np.isfinite(s) else str(b.astype(np.float32))
    return ("tensor<%s, [%s]>(%s)"%(t,", ".join(map(str,a.shape)),n(a)))
out=["program(1.3) {","func main<ios18>() {"]; exp=[]
names=[]
for i,(op,kw,vals) in enumerate(cases):
    outs=", ".join("tensor<%s, [%s]> v%d_%d"%(ty(v),", ".join(map(str,v.shape)),i,j) for j,v in enumerate(vals))
    out.append("%s = %s(%s)[name = string(\"%s_%d\")];"%(outs,op,", ".join("%s = %s"%(k,lit(v)) for k,v in kw.items()),op,i))
    for j,v in enumerate(vals):
        out.append("tensor<%s, [%s]> e%d_%d = const()[val = %s];"%(ty(v),", ".join(map(str,v.shape)),i,j,lit(v.astype(np.float32) if v.dtype==np.float64 else v)))
        names+=["v%d_%d"%(i,j),"e%d_%d"%(i,j)]
out.append("} -> (%s);"%", ".join(names)); out.append("}")
out.insert(0, "// Written by tools/oracle/mil_ops.py: v is computed, e is what coremltools %s says it is." % ct.__version__)
open(sys.argv[1], "w").write("\n".join(out) + "\n")
